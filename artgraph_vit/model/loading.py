"""What is refused when a checkpoint is loaded: pickles, and other tensors than the model's. Travels to the Hub."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from transformers.utils import cached_file


def refuse_pickles(name_or_path: str | os.PathLike | None, options: Mapping[str, Any]) -> None:
    """An index of safetensors files may name pickles as well, which transformers would read."""
    if name_or_path is None:
        return
    variant = f".{options['variant']}" if options.get("variant") else ""
    hub = ("cache_dir", "force_download", "local_files_only", "proxies", "revision", "subfolder", "token")
    index = cached_file(
        str(name_or_path),
        f"model.safetensors.index{variant}.json",
        **{name: options[name] for name in hub if options.get(name) is not None},
        _raise_exceptions_for_missing_entries=False,
        _raise_exceptions_for_connection_errors=False,
    )
    if index is not None:
        weight_map = json.loads(Path(index).read_text(encoding="utf-8"))["weight_map"]
        if not all(str(name).endswith(".safetensors") for name in weight_map.values()):
            raise ValueError(
                f"The checkpoint {str(name_or_path)!r} names weights that are no safetensors files, and these may run "
                "code when they are read: save it again as safetensors."
            )


def refuse_incomplete(
    loading_info: Mapping[str, Any], name_or_path: str | os.PathLike, ignore_unexpected: bool = False
) -> None:
    problems = {
        "lacks": loading_info["missing_keys"],
        "has another shape for": loading_info["mismatched_keys"],
        "holds, but the model has no place for,": [] if ignore_unexpected else loading_info["unexpected_keys"],
    }
    for problem, names in problems.items():
        if names:
            listed = ", ".join(sorted(str(name) for name in names)[:5])
            more = f" and {len(names) - 5} more" if len(names) > 5 else ""
            raise ValueError(
                f"The checkpoint {str(name_or_path)!r} {problem} {len(names)} tensor(s): {listed}{more}. "
                "It was made by another model or is damaged; nothing was loaded in part."
            )
