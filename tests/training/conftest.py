"""The run on one process to which tests compare those of the engines."""

from pathlib import Path

import pytest

from .engine_run import ENGINE_RUN
from .processes import run_tiny
from .tiny import EVAL_ROWS, TRAIN_ROWS, artworks


@pytest.fixture(scope="session")
def pictures(tmp_path_factory) -> Path:
    """Painted before several processes ask for them at a time."""
    folder = tmp_path_factory.mktemp("pictures")
    for rows, seed in ((TRAIN_ROWS, 1), (EVAL_ROWS, 2)):
        artworks(folder, rows, seed)
    return folder


@pytest.fixture(scope="session")
def one(tmp_path_factory, pictures) -> Path:
    """engine_run.py on one process."""
    folder = tmp_path_factory.mktemp("one")
    run_tiny(folder, pictures, 1, script=ENGINE_RUN)
    return folder
