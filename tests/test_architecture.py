"""Imports run one way, and docs/architecture.md names files that are there."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
MAY_IMPORT = {
    "model": (),
    "data": ("model",),
    "evaluation": ("model", "data"),
    "publishing": ("model", "data", "evaluation"),
    "training": ("model", "data", "evaluation", "publishing"),
    "preparing": ("model", "data", "evaluation"),
    "serving": ("model", "data", "evaluation"),
}


@pytest.mark.parametrize("package", MAY_IMPORT)
def test_imports_run_one_way(package):
    """Also those within functions."""
    imported = set()
    for path in sorted((ROOT / "artgraph_vit" / package).rglob("*.py")):
        depth = len(path.relative_to(ROOT / "artgraph_vit").parts)
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and node.level == depth:
                imported.add((node.module or "").split(".")[0])
            if isinstance(node, (ast.Import, ast.ImportFrom)):
                names = [getattr(node, "module", None) or "", *(alias.name for alias in node.names)]
                assert not any(name.startswith("artgraph_vit") for name in names), f"{path}: imports are relative"
    assert imported & MAY_IMPORT.keys() <= {package, *MAY_IMPORT[package]}


def test_an_examples_way_is_short_and_its_files_exist():
    text = (ROOT / "docs" / "architecture.md").read_text()
    way = re.findall(r"^\| \d+ \| `([\w/.]+)` \|", text, flags=re.MULTILINE)
    assert len(way) == len(set(way)) <= 20
    beside = re.findall(r"`((?:training|data|evaluation|publishing)/\w+\.py)`", text)
    assert all((ROOT / file).is_file() for file in way)
    assert all((ROOT / "artgraph_vit" / file).is_file() for file in beside)


def test_no_file_is_longer_than_a_reader_bears():
    lines = {path: len(path.read_text().splitlines()) for path in (ROOT / "artgraph_vit").rglob("*.py")}
    assert max(lines.values()) <= 500, max(lines, key=lambda path: lines[path])
