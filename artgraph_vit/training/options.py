"""Command line and YAML file: one set of options, where the command line wins.

    train.py configs/demo.yaml --seed 7

An unknown key or option, or a value of the wrong type, is an error that names it and suggests the right one.
"""

from __future__ import annotations

import difflib
import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, NoReturn

import yaml
from transformers import HfArgumentParser

from ..errors import one_line


def parse_options(
    option_classes: Sequence[Any],
    argv: Sequence[str] | None = None,
    default_config: Path | None = None,
    positionals: Sequence[str] = (),
    **parser: Any,
) -> tuple[Any, ...]:
    """Parses options into dataclasses.

    Args:
        option_classes (`Sequence[type]`): dataclasses; the help shows a group for each (`_argument_group_name`).
        argv (`Sequence[str]`, *optional*): by default the command line.
        default_config (`Path`, *optional*): the YAML file to read where the command line is empty.
        positionals (`Sequence[str]`, *optional*): options whose values may stand first, without their names; a YAML
            file before them ends in `.yaml`.
        parser: further options of `argparse.ArgumentParser`, such as `description`.

    Returns:
        An instance of each class. A wrong option ends the program with status 2 and one sentence.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    if not argv and default_config is not None:
        argv = [str(default_config)]
    usage = " ".join(["%(prog)s", "[CONFIG.yaml]", *(name.upper() for name in positionals), "[options]"])
    options = HfArgumentParser(option_classes, allow_abbrev=False, usage=usage, **parser)
    known = sorted(field.name for option_class in option_classes for field in fields(option_class))
    of_file: list[str] = []
    if argv and not argv[0].startswith("-") and (not positionals or argv[0].endswith(".yaml")):
        of_file = _read_yaml(Path(argv.pop(0)), known, options.error)
    for name in positionals:
        if argv and not argv[0].startswith("-"):
            of_file.append(f"--{name}={argv.pop(0)}")
    argv = of_file + argv  # the command line comes last, and so wins
    if unknown := options.parse_known_args(argv)[1]:
        name = unknown[0].lstrip("-").split("=")[0].replace("-", "_")
        options.error(f"there is no option {unknown[0]!r}{_suggest(name, known, '--')}")
    try:
        return options.parse_args_into_dataclasses(argv, look_for_args_file=False)
    except (ValueError, TypeError) as error:
        options.error(str(error))


def _read_yaml(path: Path, known: list[str], refuse: Callable[[str], NoReturn]) -> list[str]:
    """The options in a YAML file, as they would stand on the command line."""
    if not path.is_file():
        refuse(f"there is no file {path}; give a YAML file, or options as --name value")
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    except yaml.YAMLError as error:
        refuse(f"{path} is not valid YAML: {one_line(error)}")
    if not isinstance(values, dict):
        refuse(f"{path} does not hold 'option: value' lines")
    argv = []
    for name, value in values.items():
        if name not in known:
            refuse(f"{path} has an unknown option {name!r}{_suggest(str(name), known)}")
        if isinstance(value, list):
            argv += [f"--{name}", *map(str, value)] if value else []
        elif isinstance(value, dict):
            argv.append(f"--{name}={json.dumps(value)}")
        elif value is not None:
            argv.append(f"--{name}={str(value).lower() if isinstance(value, bool) else value}")
    return argv


def _suggest(name: str, known: list[str], prefix: str = "") -> str:
    close = difflib.get_close_matches(name, known, n=1)
    return f": did you mean {prefix}{close[0]}?" if close else "; --help lists them all"
