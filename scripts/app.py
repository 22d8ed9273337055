"""Serves a page that shows what a model sees in a picture: ranked labels, a sentence, where it looks, what is near.

    python scripts/app.py runs/demo
    python scripts/app.py your-name/artgraph-vit --index runs/vectors --port 8000

Expect its address, by default http://127.0.0.1:7860, which only this machine can open; Ctrl-C ends it. An index is a
folder that scripts/predict.py --embeddings wrote.
"""

import argparse
from pathlib import Path

from transformers.utils import logging

from artgraph_vit import ArtGraphPipeline
from artgraph_vit.errors import UserError, as_user_error, run_script
from artgraph_vit.loading import load_model
from artgraph_vit.model.pipeline_artgraph_vit import PIPELINE_TASK
from artgraph_vit.serving.search import EmbeddingIndex

DEMO = "runs/demo"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", nargs="?", default=DEMO, help=f"folder or Hub id of a model, by default {DEMO}")
    parser.add_argument("--revision", help="branch, tag or commit of the model on the Hub")
    parser.add_argument("--index", type=Path, help="folder of predictions with vectors, to show the nearest artworks")
    parser.add_argument("--host", default="127.0.0.1", help="address to bind; 0.0.0.0 lets other machines in")
    parser.add_argument("--port", type=int, default=7860, help="port to bind, by default 7860")
    args = parser.parse_args()
    with as_user_error("The page needs Gradio", "pip install 'artgraph_vit[app]'.", kinds=(ImportError,)):
        from artgraph_vit.serving.page import serve
    if args.model == DEMO and not Path(DEMO, "config.json").is_file():
        raise UserError(f"There is no model in {DEMO}: run make demo first, or give a model.")
    logging.disable_progress_bar()
    pipe = ArtGraphPipeline(*load_model(args.model, args.revision), task=PIPELINE_TASK)
    index = EmbeddingIndex.load(args.index, pipe) if args.index else None
    serve(pipe, index, host=args.host, port=args.port)


if __name__ == "__main__":
    run_script(main)
