"""Files of long runs: written whole or not at all, by one run at a time, and with errors that say what to do."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

from .errors import UserError, as_user_error


def writing(path: Path) -> AbstractContextManager[None]:
    """What goes wrong with a file or folder that is written is a `UserError`, which names it."""
    return as_user_error(
        f"{path} cannot be written",
        "free some space or choose another folder, and start again; what was written stays.",
        kinds=(OSError,),
    )


@contextmanager
def atomic_write(path: Path, writer: int = 0) -> Iterator[Path]:
    """A file to write, which gets its name when all of it is on the disk; of those who may write the same file at once
    each has another number as `writer`."""
    part = path.with_name(f"{path.name}.{writer}.part" if writer else f"{path.name}.part")
    with writing(path):
        try:
            yield part
            with open(part, "rb") as file:
                os.fsync(file.fileno())
            os.replace(part, path)
        except OSError:
            part.unlink(missing_ok=True)
            raise


@contextmanager
def folder_lock(folder: Path, called: Path | None = None) -> Iterator[None]:
    """Of two runs in one folder the second is refused; the lock, on the folder itself, goes with the process. An error
    calls it `called`, if it is a part of what the user named so."""
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        lock = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    except BlockingIOError as error:
        raise UserError(
            f"Another run is writing to {called or folder}: wait for it, or choose another folder."
        ) from error
    finally:
        os.close(lock)
