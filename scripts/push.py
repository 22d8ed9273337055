"""Publishes a finished run on the Hub: weights, config, processor, code, figures, results and card in one commit.

    python scripts/push.py runs/artgraph your-name/artgraph-vit --license cc-by-4.0 --language en --private

Expect the address of the commit; with --dry-run the list of files, and nothing is sent. Log in first with
`hf auth login`, or set HF_TOKEN. A push that broke off is started again by the same command.
"""

import argparse
from pathlib import Path

from artgraph_vit.errors import run_script
from artgraph_vit.publishing.push import dry_run, push_run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="output folder of scripts/train.py")
    parser.add_argument("repo_id", help="user/name on the Hub")
    parser.add_argument(
        "--dry-run", "--dry_run", action="store_true", help="list what would be sent, and send nothing"
    )
    parser.add_argument("--private", action="store_true", default=None, help="make the repository private")
    parser.add_argument("--revision", help="branch to push to, by default main")
    parser.add_argument("--create-pr", "--create_pr", action="store_true", help="open a pull request instead")
    card = parser.add_argument_group("model card", "by default as the run was started")
    card.add_argument("--license", help="licence of the weights as the Hub calls it, such as apache-2.0 or other")
    card.add_argument("--license-name", "--license_name", help="what the licence is called, if it is other")
    card.add_argument("--license-link", "--license_link", help="address of its text, or LICENSE, a file in the folder")
    card.add_argument("--language", help="language of the labels, such as en, or en,it; und if none is meant")
    args = parser.parse_args()
    said = {name: getattr(args, name) for name in ("license", "license_name", "license_link", "language")}
    if args.dry_run:
        print(dry_run(args.folder, args.repo_id, said))
    else:
        where = {"private": args.private, "revision": args.revision, "create_pr": args.create_pr}
        print(push_run(args.folder, args.repo_id, **where, card=said))


if __name__ == "__main__":
    run_script(main)
