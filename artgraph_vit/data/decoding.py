"""Pictures decoded and resized ahead of the model, by processes of their own: of one that dies one picture is lost."""

from __future__ import annotations

import signal
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from io import BytesIO
from multiprocessing import get_context
from typing import Any

import numpy as np
import torch
from PIL import Image

from ..model.pictures import BadPictureError, read_picture
from ..serving.source import Picture
from .bad_pictures import DEADLY
from .batches import PictureTransform
from .workers import end_with_parent

THUMBNAIL = 128  # pixels of the longer side
AHEAD = 4  # batches that a process has before it, unless they are many
MAX_AHEAD = 256_000_000  # bytes of pictures that wait

Batch = Sequence[Picture]


@dataclass(frozen=True)
class DecodedPicture:
    """Either `pixels`, uint8 `(3, H, W)`, and a thumbnail (a JPEG) if asked for; or `problem`, which says why not."""

    pixels: np.ndarray | None = None
    thumbnail: bytes | None = None
    problem: str | None = None


@dataclass(frozen=True)
class PictureDecoder:
    """Makes [`DecodedPicture`]s as the model of an image processor takes them."""

    transform: PictureTransform
    with_thumbnails: bool = False

    def __call__(self, pictures: Sequence[Picture]) -> list[DecodedPicture]:
        return [self._decoded(picture.image) for picture in pictures]

    def _decoded(self, image: dict[str, Any]) -> DecodedPicture:
        try:
            pixels = self.transform.pixels(image).numpy()
            return DecodedPicture(pixels, _thumbnail(image) if self.with_thumbnails else None)
        except BadPictureError as error:
            return DecodedPicture(problem=error.reason)


def _thumbnail(image: dict[str, Any]) -> bytes:
    picture = read_picture(image, at_least=THUMBNAIL)
    picture.thumbnail((THUMBNAIL, THUMBNAIL), Image.Resampling.BICUBIC)
    file = BytesIO()
    picture.save(file, "JPEG", quality=85)
    return file.getvalue()


def decode_ahead(
    batches: Iterable[Batch], decoder: PictureDecoder, num_workers: int
) -> Iterator[tuple[Batch, list[DecodedPicture]]]:
    """Yields the batches in their order, each with its pictures decoded.

    Args:
        batches (`Iterable[Sequence[Picture]]`).
        decoder ([`PictureDecoder`]).
        num_workers (`int`): processes; with 0 this one decodes.
    """
    if num_workers == 0:
        yield from ((batch, decoder(batch)) for batch in batches)
        return
    waiting: deque[tuple[Batch, Future]] = deque()
    pool = _pool(num_workers)
    try:
        for batch in batches:
            try:
                future = pool.submit(decoder, batch)
            except BrokenProcessPool:  # all that waits is broken too, and decoded below
                pool.shutdown()
                pool = _pool(num_workers)
                future = pool.submit(decoder, batch)
            waiting.append((batch, future))
            while len(waiting) > AHEAD * num_workers or sum(_bytes_in(batch) for batch, _ in waiting) > MAX_AHEAD:
                batch, future = waiting.popleft()
                yield batch, _result(batch, future, decoder)
        for batch, future in waiting:
            yield batch, _result(batch, future, decoder)
    finally:
        pool.shutdown(cancel_futures=True)


def _pool(num_workers: int) -> ProcessPoolExecutor:
    # "spawn": a fork of a process that already runs torch's threads can hang.
    pool = ProcessPoolExecutor(num_workers, get_context("spawn"), initializer=_begin)
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)  # which the processes inherit: Ctrl-C is for this one
    try:
        for _ in range(num_workers):
            pool.submit(_begin_all)
    finally:
        signal.signal(signal.SIGINT, before)
    return pool


def _begin_all() -> None:
    """A first task for each process, so that all are started."""


def _begin() -> None:
    end_with_parent()
    torch.set_num_threads(1)


def _bytes_in(batch: Batch) -> int:
    return sum(len(picture.image.get("bytes") or b"") for picture in batch)


def _result(batch: Batch, future: Future, decoder: PictureDecoder) -> list[DecodedPicture]:
    try:
        return future.result()
    except BrokenProcessPool:  # a decoder killed its process, perhaps at one of these
        return list(_one_by_one(batch, decoder))


def _one_by_one(batch: Batch, decoder: PictureDecoder) -> Iterator[DecodedPicture]:
    pool = _pool(1)
    for picture in batch:
        try:
            yield from pool.submit(decoder, [picture]).result()
        except BrokenProcessPool:
            pool.shutdown()
            pool = _pool(1)
            yield DecodedPicture(problem=DEADLY)
    pool.shutdown()
