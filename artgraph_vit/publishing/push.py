"""Publishes the folder of a finished run, or a prepared dataset, on the Hub in one commit: what a reader needs, and
nothing else.

Weights are safetensors or they are not sent; nothing pickled, no checkpoint, no optimizer state, no hidden file and no
link that leads out of the folder ever is. A push that broke off is started again: what is there is not sent twice.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import Any

from huggingface_hub import CommitInfo, CommitOperationAdd, CommitOperationDelete, HfApi, ModelCard
from huggingface_hub.utils import validate_repo_id
from safetensors import safe_open
from transformers.dynamic_module_utils import get_relative_import_files

from ..errors import LIBRARY_ERRORS, UserError, as_user_error
from ..evaluation.results import Results
from ..files import atomic_write
from ..model.configuration_artgraph_vit import ArtGraphViTConfig
from .card import CardOptions, render_card

MODELING = "modeling_artgraph_vit.py"
WEIGHTS = "model.safetensors"
FIGURES = "figures/*.png"  # of these the repository keeps none that the folder lacks
NEEDED = ("config.json", "preprocessor_config.json", "results.json", WEIGHTS)
PUBLISHED = (*NEEDED, FIGURES, "trainer_state.json", "labels.csv", "LICENSE")
PUBLISHED_OF_DATASETS = ("data/*.parquet", FIGURES, "vocabulary.json", "report.json")


def push_run(
    folder: Path,
    repo_id: str,
    private: bool | None = None,
    revision: str | None = None,
    create_pr: bool = False,
    card: Mapping[str, Any] | None = None,
) -> str:
    """Renders the card for the repository and uploads the run.

    Args:
        folder (`Path`): the output folder of `scripts/train.py`.
        repo_id (`str`): "user/name".
        private (`bool`, *optional*): make the repository private if it is created.
        revision (`str`, *optional*, defaults to the main branch): the branch; made if it is not there.
        create_pr (`bool`, *optional*, defaults to `False`): open a pull request, against `revision` if that is given,
            which must be there then.
        card (`Mapping`, *optional*): options of the card that take the place of the run's, such as `license`;
            `results.json` remembers them.

    Returns:
        The address of the commit, or of the pull request.

    Raises:
        UserError: if the folder does not hold a finished run, the licence or the language of the labels is not known,
            or the Hub refuses or cannot be reached.
    """
    files, results, options = _publication(folder, repo_id, card)
    if options.missing():
        raise UserError(_needed(options))
    text = files["README.md"].decode()
    with _hub_errors(folder, repo_id):
        ModelCard(text).validate()  # before anything is written, here or there
    with atomic_write(folder / "README.md") as part:
        part.write_text(text, encoding="utf-8")
    results.write(folder)  # remembers the options, for the next push
    message = "Upload a trained ArtGraph ViT"
    commit = _upload(folder, repo_id, files, (FIGURES,), message, "model", private, revision, create_pr)
    return commit.pr_url or commit.commit_url


def push_dataset(folder: Path, repo_id: str, private: bool | None = None) -> str:
    """Uploads the folder that [`prepare_dataset`] wrote, takes shards of an earlier preparation away, and returns the
    address of the commit. Arguments and errors are those of [`push_run`]."""
    card = (folder / "README.md").read_text(encoding="utf-8")
    card = card.replace(f'load_dataset("{folder.resolve().name}"', f'load_dataset("{repo_id}"')
    paths = [path for pattern in PUBLISHED_OF_DATASETS for path in folder.glob(pattern)]
    files = {"README.md": card.encode(), **{str(path.relative_to(folder)): path for path in paths}}
    return _upload(
        folder, repo_id, files, ("data/*",), "Upload artworks prepared for training", "dataset", private
    ).commit_url


def dry_run(folder: Path, repo_id: str, card: Mapping[str, Any] | None = None) -> str:
    """Lists what [`push_run`] would send; writes nothing and contacts no network.

    Raises:
        UserError: if the folder does not hold a finished run.
    """
    files, _, options = _publication(folder, repo_id, card)
    sizes = {name: len(file) if isinstance(file, bytes) else file.stat().st_size for name, file in files.items()}
    total = f"{sum(sizes.values()):,}"
    sent = {name.split("/")[0] for name in files}
    kept = sorted(path.name + "/" * path.is_dir() for path in folder.iterdir() if path.name not in sent)
    lines = [f"Would be pushed to {repo_id}, in one commit:"]
    lines += [f"  {size:>{len(total)},} {name}" for name, size in sorted(sizes.items())]
    lines += [f"  {total} bytes in {len(sizes)} files", f"Stays here: {', '.join(kept) or 'nothing'}."]
    lines += ["Would be removed there: weights and figures of an earlier push that are not among these."]
    lines += [_needed(options)] if options.missing() else []
    return "\n".join(lines)


def _needed(options: CardOptions) -> str:
    return f"The card needs what only you can say: give {' and '.join(f'--{name}' for name in options.missing())}."


def _publication(
    folder: Path, repo_id: str, card: Mapping[str, Any] | None
) -> tuple[dict[str, Any], Results, CardOptions]:
    """What a push would send, by the names in the repository (a path, or the bytes themselves); the results, with the
    card's options as they are now; and these options."""
    with as_user_error(f"{folder} cannot be pushed to {repo_id}"):
        validate_repo_id(repo_id)
    files = _files_of_run(folder)
    results = Results.read(folder)
    given = {name: value for name, value in (card or {}).items() if value is not None}
    options = replace(CardOptions.of_results(results), **given)
    results = replace(results, card=results.card | {name: getattr(options, name) for name in given})
    options = replace(options, repo_id=repo_id)
    if options.license == "other" and options.license_link == "LICENSE" and "LICENSE" not in files:
        raise UserError(f"The card would link to LICENSE, which {folder} lacks: put the text of the licence there.")
    with as_user_error(f"{folder} cannot be read", "give the output folder of a finished run."):
        config = ArtGraphViTConfig.from_pretrained(folder)
        if "trainer_state.json" in files:  # it names the best checkpoint by its path on the machine of the run
            state = json.loads(files["trainer_state.json"].read_text(encoding="utf-8"))
            state["best_model_checkpoint"] = PurePosixPath(state.get("best_model_checkpoint") or "").name or None
            files["trainer_state.json"] = (json.dumps(state, indent=2) + "\n").encode()
    files["README.md"] = render_card(results, config, folder.name, options, list(files)).encode()
    return files, results, options


def _files_of_run(folder: Path) -> dict[str, Any]:
    """What is published of a folder, which must hold all that a model needs to be loaded; of its code only what the
    model imports."""
    files = {
        path.relative_to(folder).as_posix(): path
        for path in sorted([*folder.glob("*"), *folder.glob("figures/*")])
        if not path.name.startswith(".") and path.is_file() and path.resolve().is_relative_to(folder.resolve())
    }
    code = {MODELING}
    with as_user_error(f"{folder} holds no whole model", "save it again."):
        if MODELING in files:
            code |= {Path(file).name for file in get_relative_import_files(files[MODELING])}
        if WEIGHTS in files:
            with safe_open(files[WEIGHTS], "np"):  # half written, or something else under this name?
                pass
    if missing := [name for name in (*NEEDED, *sorted(code)) if name not in files]:
        raise UserError(
            f"{folder} lacks {', '.join(missing)} (a link that leads out of it is not followed): give the output "
            "folder of a finished run."
        )
    return {name: path for name, path in files.items() if _matches(name, PUBLISHED) or name in code}


def _matches(name: str, patterns: Sequence[str]) -> bool:
    path = PurePosixPath(name)
    return any(path.match(pattern) and name.count("/") == pattern.count("/") for pattern in patterns)


# ---- the Hub ----


def _hub_errors(folder: Path, repo_id: str) -> AbstractContextManager[None]:
    """Surrounds calls of the Hub's client, of which an upload that breaks off is a RuntimeError."""
    return as_user_error(
        f"{folder} could not be pushed to {repo_id}",
        "when that is mended, start again: what is there already is not sent twice.",
        kinds=(*LIBRARY_ERRORS, RuntimeError),
    )


def _upload(
    folder: Path,
    repo_id: str,
    files: Mapping[str, Any],
    replaced: Sequence[str],
    message: str,
    repo_type: str,
    private: bool | None,
    revision: str | None = None,
    create_pr: bool = False,
) -> CommitInfo:
    """Commits files, and takes away those that fit the patterns `replaced` and are not among them."""
    api = HfApi()
    with _hub_errors(folder, repo_id):
        api.create_repo(repo_id, repo_type=repo_type, private=private, exist_ok=True)
        if private and not api.repo_info(repo_id, repo_type=repo_type).private:
            raise UserError(f"{repo_id} is there already and public: make it private in its settings first.")
        if revision is not None and not create_pr:
            api.create_branch(repo_id, branch=revision, repo_type=repo_type, exist_ok=True)
        there = api.list_repo_files(repo_id, revision=revision, repo_type=repo_type)
        old = [name for name in there if name not in files and _matches(name, replaced)]
        changes: list[Any] = [CommitOperationAdd(name, file) for name, file in sorted(files.items())]
        changes += [CommitOperationDelete(name) for name in old]
        return api.create_commit(
            repo_id, changes, commit_message=message, repo_type=repo_type, revision=revision, create_pr=create_pr
        )
