"""What serves a model or prepares data stands without the trainer."""

import re
from pathlib import Path

import pytest

import artgraph_vit

PACKAGE = Path(artgraph_vit.__file__).parent


@pytest.mark.parametrize("folder", ["model", "data", "serving", "preparing"])
def test_nothing_of_training_is_imported(folder):
    files = list((PACKAGE / folder).rglob("*.py"))
    assert files
    for file in files:
        assert not re.search(r"^\s*(from|import) .*\btraining\b", file.read_text(encoding="utf-8"), re.M), file
