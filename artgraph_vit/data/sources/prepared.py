"""The vocabulary of a dataset that scripts/prepare.py made: `vocabulary.json` beside its shards.

Its labels were chosen when it was made, from all artworks; they are not counted again.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from huggingface_hub import _CACHED_NO_EXIST, hf_hub_download, try_to_load_from_cache
from huggingface_hub.errors import (
    EntryNotFoundError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
)
from transformers.utils import logging

from ...model.tasks import Task
from .files import json_value, read_text
from .rows import DataError, ReadingOptions

logger = logging.get_logger(__name__)

VOCABULARY = "vocabulary.json"
UNFINISHED = ".unfinished"  # a folder that is there while scripts/prepare.py is at work
_MAKER = "artgraph_vit"  # others have files called vocabulary.json too


def with_kept_vocabulary(options: ReadingOptions, name: str, revision: str | None) -> ReadingOptions:
    """The options with the tasks of a prepared dataset and their labels, in a folder or on the Hub, whose rows are
    called as in its source; of any other dataset the options as they are.
    """
    kept = _kept_vocabulary(name, revision)
    if kept is None:
        return options
    by_name = {task.name: task for task in kept}
    wanted = options.tasks or tuple(by_name)
    missing = [task for task in wanted if isinstance(task, str) and task not in by_name]
    if missing and options.missing_tasks == "error":
        raise DataError(
            f"{name} was prepared without the task {missing[0]!r}, with {', '.join(by_name)}: prepare it anew."
        )
    chosen = tuple(by_name.get(task, task) if isinstance(task, str) else task for task in wanted)
    return replace(options, tasks=chosen, name_column="name")


def is_prepared(source: str, revision: str | None = None) -> bool:
    """Whether a source is a prepared dataset, whose pictures have been checked."""
    folder = Path(source).expanduser()
    return "://" not in source and _kept_vocabulary(str(folder) if folder.is_dir() else source, revision) is not None


def write_vocabulary(folder: Path, tasks: Sequence[Task]) -> None:
    content = {"made_by": _MAKER, "tasks": [task.to_dict() for task in tasks]}
    (folder / VOCABULARY).write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def _kept_vocabulary(name: str, revision: str | None) -> list[Task] | None:
    path = Path(name) / VOCABULARY if Path(name).is_dir() else _downloaded(name, revision)
    if path is None or not path.is_file():
        return None
    content = json_value(read_text(path), str(path))
    if not isinstance(content, dict) or content.get("made_by") != _MAKER:
        return None
    try:
        return [Task.from_dict(task) for task in content["tasks"]]
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path} does not hold the tasks of a prepared dataset ({error}): prepare it anew.") from error


def _downloaded(name: str, revision: str | None) -> Path | None:
    try:
        return Path(hf_hub_download(name, VOCABULARY, repo_type="dataset", revision=revision))
    except LocalEntryNotFoundError:  # offline, and not in the cache
        seen = try_to_load_from_cache(name, VOCABULARY, repo_type="dataset", revision=revision)
        if seen is not _CACHED_NO_EXIST:
            logger.warning(
                "The Hub is not reached, so it is not known whether %s was prepared and has a vocabulary of its own; "
                "it is counted anew. Read it once while online to be sure.",
                name,
            )
        return None
    except (EntryNotFoundError, RepositoryNotFoundError, HFValidationError):  # not prepared, or not on the Hub
        return None
    except (HfHubHTTPError, OSError) as error:
        reason = " ".join(str(error).split())
        raise DataError(f"{VOCABULARY} of {name} cannot be read from the Hub ({reason}): try again.") from error
