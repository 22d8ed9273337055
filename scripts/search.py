"""Finds the artworks nearest to a picture, among those of scripts/predict.py --embeddings.

    python scripts/search.py runs/demo predictions painting.jpg

Expect a line an artwork, the nearest first: its name, the cosine, and what was predicted of it.
"""

import argparse

import datasets
from transformers.utils import logging

from artgraph_vit import ArtGraphPipeline, describe
from artgraph_vit.errors import as_user_error, run_script
from artgraph_vit.loading import load_model
from artgraph_vit.serving.search import EmbeddingIndex


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", help="folder or Hub id of the model that made the predictions")
    parser.add_argument("predictions", help="folder written by scripts/predict.py --embeddings")
    parser.add_argument("picture")
    parser.add_argument("--revision", help="branch, tag or commit of the model on the Hub")
    parser.add_argument("--k", type=int, default=10, help="how many artworks, by default 10")
    args = parser.parse_args()
    if args.k < 1:
        parser.error(f"--k {args.k}: use a whole number of at least 1.")
    datasets.disable_progress_bars()
    logging.disable_progress_bar()
    pipe = ArtGraphPipeline(*load_model(args.model, args.revision))
    index = EmbeddingIndex.load(args.predictions, pipe)
    with as_user_error(f"{args.picture} cannot be read"):
        vector = pipe.embed({"path": args.picture})  # a file, and never an address
    for found in index.nearest(vector, args.k):
        print(f"{found['score']:.3f}  {found['name']}  {describe(found['answers'])}")


if __name__ == "__main__":
    run_script(main)
