"""Publishes a prepared dataset on the Hub in one commit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi

from .hub import hub_errors, make_repository

PUBLISHED = ("data/*.parquet", "figures/*.png", "vocabulary.json", "report.json")


def push_dataset(folder: Path, repo_id: str, private: bool | None = None, token: str | None = None) -> str:
    """Uploads the folder that [`prepare_dataset`] wrote, its card with the repository's name; what is there already is
    not sent again, and shards of an earlier preparation are taken away.

    Args:
        folder (`Path`).
        repo_id (`str`): "user/name".
        private (`bool`, *optional*): make the repository private if it is created.
        token (`str`, *optional*): by default the one of `hf auth login`.

    Returns:
        The address of the commit.

    Raises:
        UserError: if the Hub refuses or cannot be reached.
    """
    card = (folder / "README.md").read_text(encoding="utf-8")
    card = card.replace(f'load_dataset("{folder.resolve().name}"', f'load_dataset("{repo_id}"')
    api = HfApi(token=token)
    with hub_errors(f"{folder} could not be pushed to {repo_id}"):
        make_repository(api, repo_id, private, repo_type="dataset")
        files = sorted(path for pattern in PUBLISHED for path in folder.glob(pattern))
        changes: list[Any] = [CommitOperationAdd(str(path.relative_to(folder)), path) for path in files]
        changes.append(CommitOperationAdd("README.md", card.encode()))
        new = {change.path_in_repo for change in changes}
        there = [name for name in api.list_repo_files(repo_id, repo_type="dataset") if name.startswith("data/")]
        changes += [CommitOperationDelete(name) for name in there if name not in new]  # an earlier preparation's
        commit = api.create_commit(
            repo_id, changes, repo_type="dataset", commit_message="Upload artworks prepared for training"
        )
    return commit.commit_url
