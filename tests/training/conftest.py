"""Pictures that several processes share."""

from pathlib import Path

import pytest

from .tiny import EVAL_ROWS, TRAIN_ROWS, artworks


@pytest.fixture(scope="session")
def pictures(tmp_path_factory) -> Path:
    """Painted before several processes ask for them at a time."""
    folder = tmp_path_factory.mktemp("pictures")
    for rows, seed in ((TRAIN_ROWS, 1), (EVAL_ROWS, 2)):
        artworks(folder, rows, seed)
    return folder
