"""Finds the artworks nearest to a picture, among those of scripts/predict.py --embeddings.

    python scripts/search.py runs/demo predictions painting.jpg

Expect a line an artwork, the nearest first: its name, the cosine, and what was predicted of it.
"""

from dataclasses import dataclass, field
from typing import ClassVar

import datasets
from transformers.utils import logging

from artgraph_vit import ArtGraphPipeline, describe
from artgraph_vit.errors import UserError, run_script
from artgraph_vit.loading import load_model
from artgraph_vit.serving.search import EmbeddingIndex
from artgraph_vit.training.options import parse_options


@dataclass
class SearchArguments:
    """What is searched for, and where."""

    _argument_group_name: ClassVar[str] = "search"

    model: str = field(metadata={"help": "Folder or Hub id of the model that made the predictions."})
    predictions: str = field(metadata={"help": "Folder written by scripts/predict.py --embeddings."})
    picture: str = field(metadata={"help": "A picture."})
    revision: str | None = field(default=None, metadata={"help": "Branch, tag or commit of the model on the Hub."})
    k: int = field(default=10, metadata={"help": "How many artworks."})

    def __post_init__(self) -> None:
        if self.k < 1:
            raise ValueError(f"k={self.k}: use a whole number of at least 1.")


def main() -> None:
    (args,) = parse_options(
        (SearchArguments,), positionals=("model", "predictions", "picture"), description=__doc__.splitlines()[0]
    )
    datasets.disable_progress_bars()
    logging.disable_progress_bar()
    model, image_processor = load_model(args.model, args.revision)
    pipe = ArtGraphPipeline(model, image_processor)
    index = EmbeddingIndex.load(args.predictions, pipe)
    try:
        vector = pipe.embed({"path": args.picture})  # a file, and never an address
    except ValueError as error:
        raise UserError(f"{args.picture}: {error}") from error
    for found in index.nearest(vector, args.k):
        print(f"{found['score']:.3f}  {found['name']}  {describe(found['answers'])}")


if __name__ == "__main__":
    run_script(main)
