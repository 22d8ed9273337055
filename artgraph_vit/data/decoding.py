"""`process_pictures`: the one pool of processes that decodes, for the check of a source, for prepare and for predict.

Pictures come from anywhere, and a decoder in C may die of one: that costs the picture, not the run. Order is kept.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from multiprocessing import get_context
from typing import Any, NamedTuple, TypeVar

import torch

from ..model.pictures import BadPictureError

DEADLY = "the process that decodes it dies"
AHEAD = 4  # batches that each process has before it, unless their pictures are large
MAX_AHEAD = 256_000_000  # bytes of pictures that wait
WORTH_A_PROCESS = 256  # pictures, since a process takes seconds to start

Result = TypeVar("Result")


class Picture(NamedTuple):
    """A picture that is not read yet; `image` is what an undecoded `datasets.Image` holds: `bytes` or a `path`."""

    number: int
    name: str
    image: Mapping[str, Any]


@dataclass(frozen=True)
class Unreadable:
    """Stands in the place of a result for a picture that cannot be read."""

    reason: str


Batch = Sequence[Picture]
Function = Callable[[Mapping[str, Any]], Result]


def process_pictures(
    batches: Iterable[Batch], function: Function[Result], num_workers: int
) -> Iterator[tuple[Batch, list[Result | Unreadable]]]:
    """Applies a function, which may raise `BadPictureError`, to the `image` of each picture.

    Batches are read no further ahead than the `num_workers` processes need, and come back in their order, each with a
    list of what the function returned, or [`Unreadable`]. With 0 processes this one does the work.
    """
    if num_workers == 0:
        for batch in batches:
            yield batch, _results(function, [picture.image for picture in batch])
        return
    many, one = _Pool(function, num_workers), _Pool(function, 1)
    waiting: deque[tuple[Batch, Future]] = deque()

    def next_result() -> tuple[Batch, list[Result | Unreadable]]:
        batch, future = waiting.popleft()
        try:
            return batch, future.result()
        except BrokenProcessPool:  # a process died, perhaps at one of these
            return batch, [one.result_alone(picture) for picture in batch]

    def is_far_ahead() -> bool:
        size = sum(len(picture.image.get("bytes") or b"") for batch, _ in waiting for picture in batch)
        return len(waiting) > AHEAD * num_workers or size > MAX_AHEAD

    try:
        for batch in batches:
            waiting.append((batch, many.submit([picture.image for picture in batch])))
            while is_far_ahead():
                yield next_result()
        while waiting:
            yield next_result()
    finally:
        many.close()
        one.close()


def default_workers(pictures: int, num_processes: int | None = None) -> int:
    """The `num_workers` that so many pictures are worth: `num_processes`, by default one a core."""
    num_processes = num_processes or min(os.cpu_count() or 1, pictures // WORTH_A_PROCESS)
    return num_processes if num_processes > 1 else 0


class _Pool:
    """Processes that start with the first task, and anew after one of them has died."""

    def __init__(self, function: Function, num_workers: int):
        self.function, self.num_workers = function, num_workers
        self.executor: ProcessPoolExecutor | None = None

    def submit(self, images: list[Mapping[str, Any]]) -> Future:
        if self.executor is None:
            # A fork of a process that already runs torch's threads can hang.
            self.executor = ProcessPoolExecutor(self.num_workers, get_context("spawn"), _begin, (self.function,))
        try:
            return self.executor.submit(_results_in_worker, images)
        except BrokenProcessPool:
            self.close()
            return self.submit(images)

    def result_alone(self, picture: Picture) -> Any:
        try:
            return self.submit([picture.image]).result()[0]
        except BrokenProcessPool:
            return Unreadable(DEADLY)

    def close(self) -> None:
        if self.executor is not None:
            self.executor.shutdown(cancel_futures=True)
            self.executor = None


_function: Function  # of a worker


def _begin(function: Function) -> None:
    global _function
    _function = function
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    torch.set_num_threads(1)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """Else a worker whose parent was killed would wait for it for ever."""
    multiprocessing.parent_process().join()  # type: ignore[union-attr]
    os._exit(1)


def _results_in_worker(images: list[Mapping[str, Any]]) -> list:
    return _results(_function, images)


def _results(function: Function[Result], images: list[Mapping[str, Any]]) -> list[Result | Unreadable]:
    def result(image: Mapping[str, Any]) -> Result | Unreadable:
        try:
            return function(image)
        except BadPictureError as error:
            return Unreadable(error.reason)

    return [result(image) for image in images]
