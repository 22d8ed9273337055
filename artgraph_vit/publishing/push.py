"""Publishes the folder of a finished run on the Hub in one commit: what a reader needs, and nothing else.

Weights are safetensors or they are not sent; nothing pickled, no checkpoint, no optimizer state, no hidden file and no
link that leads out of the folder ever is. A push that broke off is started again: what is there is not sent twice.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, ModelCard
from huggingface_hub.utils import validate_repo_id
from safetensors import SafetensorError, safe_open
from transformers.dynamic_module_utils import get_relative_import_files
from transformers.utils import logging

from ..errors import UserError
from ..evaluation.results import write_results
from ..files import atomic_write
from ..model import modeling_artgraph_vit as modeling
from ..model.configuration_artgraph_vit import ArtGraphViTConfig
from .card import FIGURES, CardOptions, render_card
from .hub import hub_errors, make_repository
from .questions import complete, unanswered

logger = logging.get_logger(__name__)

WEIGHTS_INDEX = "model.safetensors.index.json"
# Of these the repository keeps none that the folder lacks: old weights beside new ones would be loaded in their place.
REPLACED = ("model.safetensors", "model-*-of-*.safetensors", WEIGHTS_INDEX, "figures/*.png")
PUBLISHED = (
    *REPLACED,
    *("config.json", "preprocessor_config.json", "trainer_state.json", "results.json", "labels.csv", "LICENSE"),
)
NEEDED = ("config.json", "preprocessor_config.json", "results.json")
# The code that travels: what save_pretrained copies, and no other file of Python that lies in the folder.
CODE = sorted({Path(file).name for file in (modeling.__file__, *get_relative_import_files(modeling.__file__))})
ONLY_ITS_AUTHOR_KNOWS = ("license", "license_name", "license_link", "language")


@dataclass(frozen=True)
class Publication:
    """What a push would send.

    Args:
        folder (`Path`): the output folder of a run.
        results (`dict`): of the run, with the card's options as they are now.
        options ([`CardOptions`]): for this repository.
        card (`str`): the text of `README.md`.
        files (`dict[str, Path | bytes]`): by their names in the repository.
        left_out (`list[str]`): what else stands at the top of the folder.
    """

    folder: Path
    results: dict[str, Any]
    options: CardOptions
    card: str
    files: dict[str, Path | bytes]
    left_out: list[str]

    @property
    def missing_figures(self) -> list[str]:
        return [name for name in FIGURES if name not in self.files]


def push_run(
    folder: Path,
    repo_id: str,
    private: bool | None = None,
    token: str | None = None,
    revision: str | None = None,
    create_pr: bool = False,
    answers: Mapping[str, Any] | None = None,
    ask: Callable[[str], str] | None = None,
) -> str:
    """Renders the card for the repository and uploads the run.

    Args:
        folder (`Path`): the output folder of `scripts/train.py`.
        repo_id (`str`): "user/name".
        private (`bool`, *optional*): make the repository private if it is created.
        token (`str`, *optional*): by default the one of `hf auth login`.
        revision (`str`, *optional*, defaults to the main branch): the branch; made if it is not there.
        create_pr (`bool`, *optional*, defaults to `False`): open a pull request, against `revision` if that is given,
            which must be there then.
        answers (`Mapping`, *optional*): options of the card that take the place of the run's, such as `license`;
            `results.json` remembers them.
        ask (`Callable[[str], str]`, *optional*): asks the author for what is missing, as `input` does.

    Returns:
        The address of the commit, or of the pull request.

    Raises:
        UserError: if the folder does not hold a finished run, the licence or the language of the labels is not known,
            or the Hub refuses or cannot be reached.
    """
    publication = _publication(folder, repo_id, answers, lambda options: complete(options, ask))
    if publication.missing_figures:
        logger.warning("%s lacks %s; the card does without.", folder, ", ".join(publication.missing_figures))
    failed = f"{folder} could not be pushed to {repo_id}"
    with hub_errors(failed):
        ModelCard(publication.card).validate()  # before anything is written, here or there
    _remember(publication)
    api = HfApi(token=token)
    with hub_errors(failed):
        make_repository(api, repo_id, private)
        if revision is not None and not create_pr:
            api.create_branch(repo_id, branch=revision, exist_ok=True)
        changes: list[Any] = [CommitOperationAdd(name, file) for name, file in publication.files.items()]
        there = [name for name in api.list_repo_files(repo_id, revision=revision) if _matches(name, REPLACED)]
        changes += [CommitOperationDelete(name) for name in there if name not in publication.files]
        commit = api.create_commit(
            repo_id,
            changes,
            commit_message="Upload a trained ArtGraph ViT",
            revision=revision,
            create_pr=create_pr,
        )
    return commit.pr_url or commit.commit_url


def dry_run(folder: Path, repo_id: str, answers: Mapping[str, Any] | None = None) -> str:
    """Lists what [`push_run`] would send; asks nobody, writes nothing and contacts no network.

    Raises:
        UserError: if the folder does not hold a finished run.
    """
    publication = _publication(folder, repo_id, answers, lambda options: options)
    files = publication.files.items()
    sizes = {name: len(file) if isinstance(file, bytes) else file.stat().st_size for name, file in files}
    width = len(f"{sum(sizes.values()):,}")
    lines = [f"Would be pushed to {repo_id}, in one commit:"]
    lines += [f"  {size:>{width},} {name}" for name, size in sorted(sizes.items())]
    lines += [f"  {sum(sizes.values()):>{width},} bytes in {len(sizes)} files"]
    lines += ["Would be removed there: weights and figures of an earlier push that are not in this list."]
    if publication.left_out:
        lines += [f"Stays here: {', '.join(publication.left_out)}."]
    if publication.missing_figures:
        lines += [f"Missing: {', '.join(publication.missing_figures)}; the card does without."]
    if missing := publication.options.missing():
        lines += [unanswered(missing)]
    return "\n".join(lines)


def _publication(
    folder: Path,
    repo_id: str,
    answers: Mapping[str, Any] | None,
    completed: Callable[[CardOptions], CardOptions],
) -> Publication:
    with hub_errors(f"{folder} cannot be pushed to {repo_id}"):
        validate_repo_id(repo_id)
    files = {name: path for name, path in _files_below(folder).items() if _matches(name, PUBLISHED) or name in CODE}
    _refuse_unfinished(folder, files)
    try:
        results = json.loads(files["results.json"].read_text(encoding="utf-8"))
        config = ArtGraphViTConfig.from_pretrained(folder)
        state = files.get("trainer_state.json")
        made = {} if state is None else {"trainer_state.json": _without_paths(state)}
    except (ValueError, OSError, AttributeError) as error:
        raise UserError(f"{folder} cannot be read ({error}): give the output folder of a finished run.") from error
    try:
        known = {field.name for field in dataclasses.fields(CardOptions)}
        card = {name: value for name, value in (results.get("card") or {}).items() if name in known}
        given = {name: value for name, value in (answers or {}).items() if value is not None}
        options = completed(CardOptions(**{**card, **given, "repo_id": repo_id}))
        said = {name: getattr(options, name) for name in {*ONLY_ITS_AUTHOR_KNOWS, *given}}
        results["card"] = {**card, **{name: value for name, value in sorted(said.items()) if value or name in card}}
        text = render_card(results, config, folder.name, options, list(files))
    except (KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"{folder}/results.json is not of a finished run ({error!r}): train or evaluate again."
        ) from error
    if options.license == "other" and options.license_link == "LICENSE" and "LICENSE" not in files:
        raise UserError(f"The card would link to LICENSE, which {folder} lacks: put the text of the licence there.")
    listed = {name.split("/")[0] for name in files} | {"README.md"}
    left_out = sorted(path.name + "/" * path.is_dir() for path in folder.iterdir() if path.name not in listed)
    return Publication(folder, results, options, text, {**files, **made, "README.md": text.encode()}, left_out)


def _files_below(folder: Path) -> dict[str, Path]:
    """The files at the top of a folder and in `figures`, without those that a link fetches from outside."""
    top = folder.resolve()
    paths = sorted([*folder.glob("*"), *folder.glob("figures/*")])
    return {
        path.relative_to(folder).as_posix(): path
        for path in paths
        if not path.name.startswith(".") and path.is_file() and path.resolve().is_relative_to(top)
    }


def _refuse_unfinished(folder: Path, files: Mapping[str, Path]) -> None:
    missing = [name for name in NEEDED if name not in files]
    weights = [name for name in files if name.endswith(".safetensors")]
    if not weights:
        missing.append("model.safetensors")
    elif WEIGHTS_INDEX in files:
        try:
            parts = json.loads(files[WEIGHTS_INDEX].read_text(encoding="utf-8"))["weight_map"].values()
        except (ValueError, KeyError, AttributeError) as error:
            raise UserError(f"{folder}/{WEIGHTS_INDEX} is damaged: save the model again.") from error
        missing += sorted({str(name) for name in parts} - set(files))
        if "model.safetensors" in files:
            raise UserError(
                f"{folder} holds two models, model.safetensors and one in parts ({WEIGHTS_INDEX}): remove the older."
            )
    if missing:
        linked = [name for name in missing if (folder / name).is_file()]
        why = f" ({', '.join(linked)} leads out of it by a link, which is not followed)" if linked else ""
        raise UserError(f"{folder} lacks {', '.join(missing)}{why}: give the output folder of a finished run.")
    if lacking := [name for name in CODE if name not in files]:  # saved before it was there
        raise UserError(
            f"{folder} lacks code that travels with the weights ({', '.join(lacking)}): save it again, by "
            f"ArtGraphPipeline.from_pretrained({str(folder)!r}).save_pretrained({str(folder)!r})."
        )
    for name in weights:
        try:
            with safe_open(files[name], "np"):
                pass
        except SafetensorError as error:  # half written, or something else under this name
            raise UserError(
                f"{folder}/{name} is no whole safetensors file ({error}): save the model again."
            ) from error


def _matches(name: str, patterns: tuple[str, ...]) -> bool:
    path = PurePosixPath(name)
    return any(path.match(pattern) and name.count("/") == pattern.count("/") for pattern in patterns)


def _without_paths(path: Path) -> bytes:
    """The trainer's state names the best checkpoint by its path on the machine of the run: its own name is enough."""
    state = json.loads(path.read_text(encoding="utf-8"))
    if state.get("best_model_checkpoint"):
        state["best_model_checkpoint"] = PurePosixPath(state["best_model_checkpoint"]).name
    return (json.dumps(state, indent=2) + "\n").encode()


def _remember(publication: Publication) -> None:
    """Keeps the card and what was answered in the folder, for the next push."""
    folder = publication.folder
    with atomic_write(folder / "README.md") as part:
        part.write_text(publication.card, encoding="utf-8")
    if publication.results != json.loads((folder / "results.json").read_text(encoding="utf-8")):
        write_results(publication.results, folder)
