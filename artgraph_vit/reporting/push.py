"""Publishes the folder of a finished run on the Hub in one commit: what a reader needs, and nothing else."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi
from huggingface_hub.errors import HfHubHTTPError, HFValidationError

from ..configuration_artgraph_vit import ArtGraphViTConfig
from ..errors import UserError
from .card import CardOptions, write_card

PUBLISHED = [
    "*.safetensors",
    "model.safetensors.index.json",
    "config.json",
    "preprocessor_config.json",
    "*.py",
    "trainer_state.json",
    "results.json",
    "figures/*.png",
    "README.md",
]
# The bases of the Hub's error are what its HTTP client raises itself, such as for a network that is down.
HUB_ERRORS: tuple[Any, ...] = (*HfHubHTTPError.__bases__, HFValidationError)
NEEDED = ("config.json", "preprocessor_config.json", "results.json")


def push_run(
    folder: Path,
    repo_id: str,
    private: bool | None = None,
    token: str | None = None,
    revision: str | None = None,
    license: str | None = None,
) -> str:
    """Renders the card for the repository and uploads the run.

    Args:
        folder (`Path`): the output folder of `scripts/train.py`.
        repo_id (`str`): "user/name".
        private (`bool`, *optional*): make the repository private if it is created.
        token (`str`, *optional*): by default the one of `hf auth login`.
        revision (`str`, *optional*, defaults to the main branch): the branch; made if it is not there.
        license (`str`, *optional*): of the weights; by default the one the run was started with.

    Returns:
        The address of the commit.

    Raises:
        UserError: if the folder does not hold a finished run, or the Hub refuses or cannot be reached.
    """
    missing = [name for name in NEEDED if not (folder / name).is_file()]
    if not any((folder / name).is_file() for name in ("model.safetensors", "model.safetensors.index.json")):
        missing.append("model.safetensors")
    if missing:
        raise UserError(f"{folder} lacks {', '.join(missing)}: give the output folder of a finished run.")
    results = json.loads((folder / "results.json").read_text(encoding="utf-8"))
    options = dataclasses.replace(CardOptions(**results["card"]), repo_id=repo_id)
    if license is not None:
        options = dataclasses.replace(options, license=license)
    write_card(results, ArtGraphViTConfig.from_pretrained(folder), folder, options)

    api = HfApi(token=token)
    try:
        api.create_repo(repo_id, private=private, exist_ok=True)
        if revision is not None:
            api.create_branch(repo_id, branch=revision, exist_ok=True)
        commit = api.upload_folder(
            repo_id=repo_id,
            folder_path=folder,
            revision=revision,
            allow_patterns=PUBLISHED,
            ignore_patterns=["checkpoint-*"],
            commit_message="Upload a trained ArtGraph ViT",
        )
    except HUB_ERRORS as error:
        reason = " ".join(str(error).split())
        raise UserError(
            f"{folder} could not be pushed to {repo_id}: {reason}. When that is mended, push again."
        ) from error
    return commit.commit_url
