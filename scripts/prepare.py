"""Prepares a source of artworks once: checked pictures of a small size in parquet shards, which train fast.

    python scripts/prepare.py /data/artgraph prepared/artgraph
    python scripts/prepare.py huggan/wikiart prepared/wikiart --push_to_hub your-name/wikiart-256

Expect a progress bar, and a folder that `scripts/train.py --source` takes, with a card, histograms and report.json.
Started again after it was stopped, it goes on where it was.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

import datasets
from transformers import AutoImageProcessor

from artgraph_vit.data import PictureTransform
from artgraph_vit.data.options import DataArguments, choice, option, read_artworks
from artgraph_vit.errors import as_user_error, run_script
from artgraph_vit.preparing import DatasetCardOptions, PictureEncoder, prepare_dataset
from artgraph_vit.publishing.push import push_dataset
from artgraph_vit.training.options import parse_options


@dataclass
class PrepareArguments:
    """What is stored."""

    _argument_group_name: ClassVar[str] = "preparing"

    output_dir: str = field(metadata={"help": "Folder for the prepared dataset."})
    size: int = option(256, "Pixels of the shorter side; smaller pictures stay as they are.")
    exact_for: str | None = option(
        None,
        "A backbone, whose image processor's very pixels are stored, uncompressed: the fastest to train on, for this "
        "backbone alone; random crops of them are enlarged.",
    )
    num_processes: int | None = option(None, "By default one a core.")
    push_to_hub: str | None = option(None, "Publish it as this dataset: user/name.")
    private: bool = option(False, "Make the repository private if it is created.")

    def __post_init__(self) -> None:
        for name in ("size", "num_processes"):
            if getattr(self, name) is not None and getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)}: use a whole number of at least 1.")


@dataclass
class SourceArguments(DataArguments):
    """What is read, as for training; but a picture that cannot be read is left out and reported."""

    on_bad_image: str = choice("skip", ("skip", "stop"), "What to do if pictures cannot be read.")


def main() -> None:
    prepare, source, card = parse_options(
        (PrepareArguments, SourceArguments, DatasetCardOptions),
        positionals=("source", "output_dir"),
        description=__doc__.splitlines()[0],
    )
    datasets.disable_progress_bars()
    exact_for = None
    if prepare.exact_for:
        with as_user_error(f"The image processor of {prepare.exact_for!r} cannot be used"):
            image_processor = AutoImageProcessor.from_pretrained(prepare.exact_for, trust_remote_code=False)
        exact_for = PictureTransform(image_processor, "full")
    rows, tasks = read_artworks(source)
    folder = Path(prepare.output_dir)
    encoder = PictureEncoder(prepare.size, exact_for, source.jpeg_scale)
    report = prepare_dataset(rows, tasks, folder, encoder, card, prepare.num_processes, source.on_bad_image)
    print(
        f"{report['artworks']} pictures are in {folder}; {len(report['left_out'])} were left out, "
        f"{len(report['duplicates'])} are there more than once, and {len(report['near_duplicates_across_splits'])} "
        f"pairs stand in two splits: {folder / 'report.json'} names them.\n"
        f"Train on it with: accelerate launch scripts/train.py --source {folder}"
    )
    if prepare.push_to_hub is not None:
        print(push_dataset(folder, prepare.push_to_hub, prepare.private or None))


if __name__ == "__main__":
    run_script(main)
