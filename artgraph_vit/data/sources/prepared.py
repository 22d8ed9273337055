"""The vocabulary of a dataset that scripts/prepare.py made: `vocabulary.json` beside its shards.

Its labels were chosen when it was made, from all artworks; they are not counted again.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from huggingface_hub import _CACHED_NO_EXIST, hf_hub_download, try_to_load_from_cache
from huggingface_hub.errors import (
    EntryNotFoundError,
    HFValidationError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
)
from transformers.utils import logging

from ...errors import UserError, as_user_error
from ...model.tasks import Task
from .files import is_address, json_value, read_text

logger = logging.get_logger(__name__)

VOCABULARY = "vocabulary.json"
UNFINISHED = ".unfinished"  # a folder that is there while scripts/prepare.py is at work
_MAKER = "artgraph_vit"  # others have files called vocabulary.json too


def is_prepared(source: str, revision: str | None = None) -> bool:
    """Whether a source is a prepared dataset, whose pictures have been checked."""
    return not is_address(source) and kept_vocabulary(source, revision) is not None


def kept_vocabulary(source: str, revision: str | None = None) -> list[Task] | None:
    """The tasks of a prepared dataset, in a folder or on the Hub, with their labels; None of any other dataset."""
    folder = Path(source).expanduser()
    path = folder / VOCABULARY if folder.is_dir() else _downloaded(source, revision)
    if path is None or not path.is_file():
        return None
    content = json_value(read_text(path), str(path))
    if not isinstance(content, dict) or content.get("made_by") != _MAKER:
        return None
    kinds = (ValueError, KeyError, TypeError)
    with as_user_error(f"{path} does not hold the tasks of a prepared dataset", "prepare it anew.", kinds):
        return [Task.from_dict(task) for task in content["tasks"]]


def choose_kept(
    kept: Sequence[Task], tasks: Sequence[str | Task] | None, source: str, missing_tasks: str = "error"
) -> list[str | Task]:
    """The tasks to read of a prepared dataset: by default all, and those named with its labels."""
    by_name = {task.name: task for task in kept}
    wanted = tasks or list(by_name)
    missing = [task for task in wanted if isinstance(task, str) and task not in by_name]
    if missing and missing_tasks == "error":
        names = ", ".join(by_name)
        raise UserError(f"{source} was prepared without the task {missing[0]!r}, with {names}: prepare it anew.")
    return [by_name.get(task, task) if isinstance(task, str) else task for task in wanted]


def write_vocabulary(folder: Path, tasks: Sequence[Task]) -> None:
    content = {"made_by": _MAKER, "tasks": [task.to_dict() for task in tasks]}
    (folder / VOCABULARY).write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def _downloaded(name: str, revision: str | None) -> Path | None:
    with as_user_error(f"{VOCABULARY} of {name} cannot be read from the Hub", "try again."):
        try:
            return Path(hf_hub_download(name, VOCABULARY, repo_type="dataset", revision=revision))
        except LocalEntryNotFoundError:  # offline, and not in the cache
            seen = try_to_load_from_cache(name, VOCABULARY, repo_type="dataset", revision=revision)
            if seen is not _CACHED_NO_EXIST:
                logger.warning(
                    "The Hub is not reached, so it is not known whether %s was prepared and has a vocabulary of its "
                    "own; it is counted anew. Read it once while online to be sure.",
                    name,
                )
            return None
        except (EntryNotFoundError, RepositoryNotFoundError, HFValidationError):  # not prepared, or not on the Hub
            return None
