"""A folder that is a Space of the Hub: the page of a model, with the package beside it and example pictures."""

from __future__ import annotations

import shutil
from importlib.metadata import requires, version
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import ModelCard
from huggingface_hub.utils import validate_repo_id
from packaging.requirements import Requirement

from ..errors import UserError, as_user_error
from .page import paint_examples

APP = '''"""The page of a model of artworks: artist, style, genre, tags and media."""

from pathlib import Path

from artgraph_vit import ArtGraphPipeline
from artgraph_vit.serving.page import serve

HERE = Path(__file__).resolve().parent

if __name__ == "__main__":
    serve(ArtGraphPipeline.from_pretrained({model}), examples=sorted((HERE / "examples").iterdir()))
'''


def write_space(model: str, out: Path) -> None:
    """Writes app.py, README.md with the Space's settings, requirements.txt, this package and example pictures.

    Args:
        model (`str`): a Hub id, or a folder, whose weights are copied in.
        out (`Path`): the folder to write, which must not hold anything yet.

    Raises:
        UserError: if it does, or there is no such model.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"{out} holds something already: choose another folder.")
    folder = Path(model)
    name, where = repr(model), f"[{model}](https://huggingface.co/{model})"
    settings: dict[str, Any] = {
        "title": "What is in a painting?",
        "emoji": "\N{ARTIST PALETTE}",
        "sdk": "gradio",
        "sdk_version": version("gradio"),
        "python_version": "3.11",  # the least that the package runs on
        "app_file": "app.py",
    }
    if folder.is_dir():
        name, where = 'HERE / "model"', "in the folder `model`"
        _copy_model(folder, out / "model")
        card = ModelCard.load(folder / "README.md").data.to_dict() if (folder / "README.md").is_file() else {}
        settings |= {key: card[key] for key in ("license", "license_name", "license_link") if card.get(key)}
    else:
        with as_user_error("The model is neither a folder nor called user/name, as a repository on the Hub is"):
            validate_repo_id(model)
            _user, _name = model.split("/")
        settings["models"] = [model]
    (out / "examples").mkdir(parents=True)
    paint_examples(out / "examples")
    (out / "app.py").write_text(APP.format(model=name), encoding="utf-8")
    front = yaml.safe_dump(settings, sort_keys=False, allow_unicode=True)
    text = f"Shows what a model of artworks, {where}, sees in a picture, and where it looks."
    (out / "README.md").write_text(f"---\n{front}---\n\n{text}\n", encoding="utf-8")
    (out / "requirements.txt").write_text("".join(f"{line}\n" for line in _requirements()), encoding="utf-8")
    # A Space installs its requirements before it has the other files, so the package lies beside the page.
    package = Path(__file__).parents[1]
    shutil.copytree(package, out / package.name, ignore=shutil.ignore_patterns("__pycache__", "*.pyc"))


def _copy_model(folder: Path, out: Path) -> None:
    """What is loaded, and the card; none of the code that travels, which the package has."""
    for needed in ("config.json", "preprocessor_config.json", "model*.safetensors"):
        if not any(folder.glob(needed)):
            raise UserError(f"{folder} holds no model: it lacks {needed}.")
    out.mkdir(parents=True)
    names = ("config.json", "preprocessor_config.json", "model*.safetensors*", "README.md", "LICENSE")
    for path in (path for name in names for path in folder.glob(name)):
        shutil.copy2(path, out)


def _requirements() -> list[str]:
    """What the package needs, in the ranges of its own metadata, and Gradio as the Space has it."""
    needs = [Requirement(line) for line in requires("artgraph_vit") or ()]
    needs = [need for need in needs if need.marker is None or need.marker.evaluate({"extra": ""})]
    return [*sorted(f"{need.name}{need.specifier}" for need in needs), f"gradio=={version('gradio')}"]
