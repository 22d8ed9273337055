"""`load_model`: a trained model from a folder or the Hub; a checkpoint of training only if it is whole.

A checkpoint is whole when all of its files are on the disk: `checkpoint.json` lists them with size and SHA-256. A
folder without it was not written to its end, and one that does not match it was damaged later.
"""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path

import torch
from transformers import AutoImageProcessor, BaseImageProcessor

from .errors import UserError, as_user_error
from .files import atomic_write
from .model.modeling_artgraph_vit import ArtGraphViTForImageClassification

MANIFEST = "checkpoint.json"


def load_model(
    name_or_path: str, revision: str | None = None
) -> tuple[ArtGraphViTForImageClassification, BaseImageProcessor]:
    """A trained model and its image processor.

    Raises:
        UserError: if there is none, or it is damaged.
    """
    folder = Path(name_or_path)
    is_path = name_or_path.startswith((".", "/", "~")) or (folder.parent != Path() and folder.parent.is_dir())
    if is_path and not folder.is_dir():  # else it would be looked for on the Hub
        raise UserError(f"There is no folder {name_or_path!r}: give the folder of a trained model, or a Hub id.")
    if (folder / MANIFEST).exists() or (folder.is_dir() and folder.name.startswith("checkpoint-")):
        problem = verify_checkpoint(folder)
        if problem:
            raise UserError(f"The checkpoint {name_or_path!r} is not whole: {problem}.")
    with as_user_error(f"The checkpoint {name_or_path!r} cannot be loaded"):
        model = ArtGraphViTForImageClassification.from_pretrained(
            name_or_path,
            revision=revision,
            dtype=torch.float32,  # in whatever it was saved: pixels come in float32
        )
        image_processor = AutoImageProcessor.from_pretrained(name_or_path, revision=revision, trust_remote_code=False)
        return model, image_processor


def write_manifest(checkpoint: Path) -> None:
    """Puts all files of a checkpoint on the disk, and then the list of them."""
    files = {}
    for path in sorted(path for path in checkpoint.rglob("*") if path.is_file() and path.name != MANIFEST):
        with open(path, "rb") as file:
            os.fsync(file.fileno())
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        files[path.relative_to(checkpoint).as_posix()] = {"bytes": path.stat().st_size, "sha256": digest}
    with atomic_write(checkpoint / MANIFEST) as part:
        part.write_text(json.dumps({"files": files}, indent=2), encoding="utf-8")


def verify_checkpoint(checkpoint: Path) -> str | None:
    """What is wrong with a checkpoint; None if it is whole."""
    try:
        files = json.loads((checkpoint / MANIFEST).read_text(encoding="utf-8"))["files"]
    except FileNotFoundError:
        return "it was not written to its end"
    except (ValueError, KeyError, TypeError):
        return f"its {MANIFEST} cannot be read"
    for name, expected in files.items():
        path = checkpoint / name
        if not path.is_file():
            return f"{name} is missing"
        if path.stat().st_size != expected["bytes"]:
            return f"{name} has {path.stat().st_size:,} bytes instead of {expected['bytes']:,}"
        with open(path, "rb") as file:
            if hashlib.file_digest(file, "sha256").hexdigest() != expected["sha256"]:
                return f"{name} has changed since it was written"
    return None
