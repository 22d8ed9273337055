"""Publishes a prepared dataset on the Hub in one commit."""

from __future__ import annotations

from pathlib import Path

from huggingface_hub import HfApi

from ..errors import UserError
from ..reporting.push import HUB_ERRORS

PUBLISHED = ["data/*.parquet", "figures/*.png", "vocabulary.json", "report.json", "README.md"]


def push_dataset(folder: Path, repo_id: str, private: bool | None = None, token: str | None = None) -> str:
    """Uploads the folder that [`prepare_dataset`] wrote, its card with the repository's name; what is there already is
    not sent again.

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
    card = folder / "README.md"
    text = card.read_text(encoding="utf-8").replace(f'load_dataset("{folder.name}"', f'load_dataset("{repo_id}"')
    card.write_text(text, encoding="utf-8")
    api = HfApi(token=token)
    try:
        api.create_repo(repo_id, repo_type="dataset", private=private, exist_ok=True)
        commit = api.upload_folder(
            repo_id=repo_id,
            repo_type="dataset",
            folder_path=folder,
            allow_patterns=PUBLISHED,
            commit_message="Upload artworks prepared for training",
        )
    except HUB_ERRORS as error:
        reason = " ".join(str(error).split())
        raise UserError(
            f"{folder} could not be pushed to {repo_id}: {reason}. When that is mended, start again."
        ) from error
    return commit.commit_url
