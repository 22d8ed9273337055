"""Writes a folder that is a Space of the Hub: the page of a model, ready to be uploaded or started.

    python scripts/space.py your-name/artgraph-vit space
    hf upload your-name/artgraph-page space . --repo-type space

Expect app.py, README.md with the Space's settings, requirements.txt, this package and example pictures in the folder.
Of a model in a folder the weights are copied in. `python app.py` in the Space's folder serves the page here.
"""

import argparse
from pathlib import Path

from artgraph_vit.errors import as_user_error, run_script


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", help="Hub id of a model, or a folder that holds one")
    parser.add_argument("out", type=Path, help="folder to write, which must not hold anything yet")
    args = parser.parse_args()
    with as_user_error("A Space needs Gradio", "pip install 'artgraph_vit[app]'.", kinds=(ImportError,)):
        from artgraph_vit.serving.page import write_space
    write_space(args.model, args.out)
    print(f"{args.out} is ready: python app.py in it serves the page, and hf upload publishes it.")


if __name__ == "__main__":
    run_script(main)
