"""Pictures that are in a dataset twice: the very same, and nearly the same in two splits, which is a leak.

Nearly the same are two pictures whose difference hashes (Neal Krawetz, "Kind of Like That", 2013) differ in at most 40
of 256 bits, and whose thumbnails differ by at most 40 of 255 in the mean. Of 267 paintings the two that are most alike
differ in 76 bits; saved at quality 30, at half the size, brighter by a fifth or in grey they differ from themselves in
at most 25, cut by 2 % at each side nine in ten in at most 41.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from tqdm.auto import tqdm

from .encoding import THUMBNAIL

NEAR_BITS = 40
NEAR_GREY = 40.0
_BLOCK = 8192


def exact_duplicates(names: Sequence[str], splits: Sequence[str], digests: Sequence[str]) -> list[list[dict]]:
    """Groups of two or more artworks whose stored pictures are the same bytes, each with name and split."""
    groups: dict[str, list[dict]] = {}
    for name, split, digest in zip(names, splits, digests, strict=True):
        groups.setdefault(digest, []).append({"name": name, "split": split})
    return [group for group in groups.values() if len(group) > 1]


def near_duplicates(
    names: Sequence[str], splits: Sequence[str], thumbnails: Sequence[bytes], progress: bool = True
) -> list[dict[str, Any]]:
    """Pairs of artworks in two splits that look nearly or wholly the same, those most alike first.

    Every picture is compared with every one of the other splits, as a product of matrices: n² multiplications of 256
    numbers, seconds for 100,000 pictures.
    """
    width, height = THUMBNAIL
    grey = np.frombuffer(b"".join(thumbnails), np.uint8).reshape(-1, height, width)  # (n, 16, 17)
    signs = np.where(grey[:, :, 1:] > grey[:, :, :-1], 1.0, -1.0).astype(np.float32).reshape(len(grey), -1)  # (n, 256)
    split_of = np.array(splits)
    pairs = []
    for first, second, bits in _close_pairs(signs, split_of, progress):
        difference = np.abs(grey[first].astype(float) - grey[second]).mean()
        if difference <= NEAR_GREY:
            artworks = [{"name": names[index], "split": splits[index]} for index in (first, second)]
            pairs.append({"artworks": artworks, "different_bits": bits})
    return sorted(pairs, key=lambda pair: (pair["different_bits"], pair["artworks"][0]["name"]))


def _close_pairs(signs: np.ndarray, split_of: np.ndarray, progress: bool) -> Iterator[tuple[int, int, int]]:
    present = [split for split in ("train", "validation", "test") if (split_of == split).any()]
    rows_of = {split: np.flatnonzero(split_of == split) for split in present}
    jobs = [
        (rows_of[one][start : start + _BLOCK], rows_of[other])
        for position, one in enumerate(present)
        for other in present[position + 1 :]
        for start in range(0, len(rows_of[one]), _BLOCK)
    ]
    for left, right in tqdm(jobs, desc="Comparing splits", unit="block", disable=not progress):
        for start in range(0, len(right), _BLOCK):
            columns = right[start : start + _BLOCK]
            product = torch.from_numpy(signs[left]) @ torch.from_numpy(signs[columns]).T  # (left, columns)
            bits = (signs.shape[1] - product) / 2
            for row, column in (bits <= NEAR_BITS).nonzero().tolist():
                yield int(left[row]), int(columns[column]), int(bits[row, column])
