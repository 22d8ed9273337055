"""Publishes a finished run on the Hub: weights, config, processor, code, figures, results and card in one commit.

    python scripts/push.py runs/artgraph your-name/artgraph-vit --private

Expect the address of the commit. Log in first with `hf auth login`, or set HF_TOKEN.
"""

import argparse
from pathlib import Path

from artgraph_vit.errors import run_script
from artgraph_vit.reporting.push import push_run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="output folder of scripts/train.py")
    parser.add_argument("repo_id", help="user/name on the Hub")
    parser.add_argument("--private", action="store_true", default=None, help="make the repository private")
    parser.add_argument("--revision", help="branch to push to, by default main")
    parser.add_argument("--license", help="licence of the weights, such as apache-2.0")
    args = parser.parse_args()
    print(push_run(args.folder, args.repo_id, args.private, revision=args.revision, license=args.license))


if __name__ == "__main__":
    run_script(main)
