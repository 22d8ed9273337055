"""Pictures that are in a dataset twice: the very same, and nearly the same in two splits, which is a leak.

What a picture looks like is the set of its steps: where one of 16 x 17 grey values is at least 3 of 255 brighter than
its neighbour, and where darker (after the difference hash of Neal Krawetz, "Kind of Like That", 2013, in which a plain
ground would have steps too). Nearly the same are two pictures whose sets have a Jaccard similarity of at least 0.7.
Of 267 paintings the two most alike have about 0.5; copies of them saved at quality 30, at half the size, brighter by a
fifth or cut by 1 % at each side are all found, those cut by 2 % mostly (tests/preparing/test_duplicates.py).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Any

import numpy as np
from tqdm.auto import tqdm

from .encoding import THUMBNAIL

SIMILAR = 0.7
STEP = 3
FEWEST_STEPS = 24  # a picture with fewer is nearly blank, and like all that are
_BLOCK = 8192


def exact_duplicates(artworks: Sequence[Mapping[str, Any]]) -> list[list[dict[str, Any]]]:
    """Groups of two or more artworks of the same `digest`, each with name and split."""
    groups: dict[str, list[dict[str, Any]]] = {}
    for artwork in artworks:
        groups.setdefault(artwork["digest"], []).append({key: artwork[key] for key in ("name", "split")})
    return [group for group in groups.values() if len(group) > 1]


def near_duplicates(artworks: Sequence[Mapping[str, Any]], progress: bool = True) -> list[dict[str, Any]]:
    """Pairs of artworks in two splits that look nearly the same, most similar first; not the very same pictures.

    An artwork has `name`, `split`, `digest` and `thumbnail` (in hex). Every picture is compared with every one of the
    other splits, as a product of matrices: n² multiplications of 512 numbers, seconds for 100,000 pictures.
    """
    first = {(artwork["digest"], artwork["split"]): artwork for artwork in reversed(artworks)}
    unlike = list(first.values())  # one of each picture a split
    steps = _steps([bytes.fromhex(artwork["thumbnail"]) for artwork in unlike])
    rows = np.flatnonzero(steps.sum(1) >= FEWEST_STEPS)
    unlike, steps = [unlike[row] for row in rows], steps[rows]
    split_of = np.array([artwork["split"] for artwork in unlike])
    sizes = steps.sum(1)
    jobs = [
        (left, right)
        for one, other in combinations(("train", "validation", "test"), 2)
        for left in _blocks(np.flatnonzero(split_of == one))
        for right in _blocks(np.flatnonzero(split_of == other))
    ]
    pairs = []
    for left, right in tqdm(jobs, desc="Comparing splits", unit="block", disable=not progress):
        common = steps[left] @ steps[right].T  # (left, right)
        similarity = common / (sizes[left][:, None] + sizes[right] - common)
        for row, column in np.argwhere(similarity >= SIMILAR):
            both = [unlike[left[row]], unlike[right[column]]]
            if both[0]["digest"] != both[1]["digest"]:
                named = [{key: artwork[key] for key in ("name", "split")} for artwork in both]
                pairs.append({"artworks": named, "similarity": round(float(similarity[row, column]), 3)})
    return sorted(pairs, key=lambda pair: (-pair["similarity"], pair["artworks"][0]["name"]))


def _steps(thumbnails: Sequence[bytes]) -> np.ndarray:
    """The sets as float32 (n, 512) of 0 and 1."""
    width, height = THUMBNAIL
    grey = np.frombuffer(b"".join(thumbnails), np.uint8).reshape(-1, height, width).astype(np.int16)  # (n, 16, 17)
    change = (grey[:, :, 1:] - grey[:, :, :-1]).reshape(len(grey), -1)  # (n, 256)
    return np.concatenate([change >= STEP, change <= -STEP], axis=1).astype(np.float32)


def _blocks(rows: np.ndarray) -> list[np.ndarray]:
    return [rows[start : start + _BLOCK] for start in range(0, len(rows), _BLOCK)]
