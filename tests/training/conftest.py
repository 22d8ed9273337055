"""What several tests share: painted pictures, and a run of 4 epochs."""

from pathlib import Path

import pytest

from artgraph_vit.training.trainer import ArtGraphTrainer

from .tiny import EVAL_ROWS, TRAIN_ROWS, artworks, tiny_trainer


@pytest.fixture(scope="session")
def pictures(tmp_path_factory) -> Path:
    """Painted before several processes ask for them at a time."""
    folder = tmp_path_factory.mktemp("pictures")
    for rows, seed in ((TRAIN_ROWS, 1), (EVAL_ROWS, 2)):
        artworks(folder, rows, seed)
    return folder


@pytest.fixture(scope="session")
def finished(tmp_path_factory) -> ArtGraphTrainer:
    """After 16 steps, 8 in each phase, with the weights and the log of the last; to be read only."""
    trainer = tiny_trainer(tmp_path_factory.mktemp("finished"), load_best_model_at_end=False)
    trainer.train()
    return trainer


@pytest.fixture(scope="session")
def finished_folder(finished) -> Path:
    """With its checkpoints 4, 8, 12 and 16."""
    return Path(finished.args.output_dir)
