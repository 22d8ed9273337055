"""`ArtGraphPipeline`: from pictures in any form to named labels with scores, or to vectors for search.

A picture -> RGB -> pixel_values -> logits of each task -> labels with scores. In a list, a folder or a dataset a
picture that cannot be read gives an entry that says why. A text that begins with http:// or https:// is fetched, as
by every pipeline of transformers; who must not fetch what strangers name passes `{"path": ...}` or `{"bytes": ...}`.
Travels to the Hub, so that `pipeline(model=repo, trust_remote_code=True)` needs no package.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from PIL import Image, UnidentifiedImageError
from torch import Tensor
from transformers import AutoImageProcessor, Pipeline
from transformers.image_utils import load_image

from .modeling_artgraph_vit import ArtGraphViTForImageClassification
from .museum_label import describe
from .pictures import BadPictureError, decoding_side, read_picture, upright_rgb
from .tasks import OTHER, THRESHOLD, Task, label_scores, predicted_labels

PIPELINE_TASK = "artwork-classification"  # what transformers' pipeline() calls it once the package is imported
# For who has no package. Under a name of its own: pipeline() refuses a task that a repository names unless its code
# is trusted, even where a registered class would serve.
TRAVELLING_PIPELINE = {
    "artgraph-vit": {
        "impl": "pipeline_artgraph_vit.ArtGraphPipeline",
        "pt": ["AutoModelForImageClassification"],
        "type": "image",
    }
}
PICTURE_SUFFIXES = {".bmp", ".gif", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp"}
RESERVED = ("error", "file")  # keys of an answer that are no task
ONE_PICTURE = (str, os.PathLike, bytes, bytearray, memoryview, Mapping, Image.Image, Tensor)  # and arrays
FORMS = "give a path, an address, bytes, an image or an array"


class ArtGraphPipeline(Pipeline):
    """Predicts the labels of artworks.

    Made by [`ArtGraphPipeline.from_pretrained`], or by `transformers.pipeline`. The options of a call may also be
    given when it is made.

    Args:
        model ([`ArtGraphViTForImageClassification`]): put in eval mode.
        image_processor (`BaseImageProcessor`): of its backbone.
        kwargs: further options of [`~transformers.Pipeline`], such as `device` and `batch_size`.

    Raises:
        ValueError: if the model has a task called as a key of the answers is ("error", "file").
    """

    image_processor: Any
    _load_image_processor: Any = True
    _load_tokenizer: Any = False
    _load_feature_extractor: Any = False
    _load_processor: Any = False

    def __init__(self, model: ArtGraphViTForImageClassification, image_processor: Any = None, **kwargs: Any):
        if image_processor is None:
            raise ValueError("ArtGraphPipeline needs the image processor of the model: pass image_processor=...")
        for task in model.config.tasks:
            if task.name in RESERVED:
                raise ValueError(
                    f"The answers of a pipeline have the key {task.name!r}, which is a task of this model."
                )
        super().__init__(model=model.eval(), image_processor=image_processor, **kwargs)
        blank = image_processor(Image.new("RGB", (32, 32)), return_tensors="pt")
        self._blank = torch.zeros_like(blank["pixel_values"])  # (1, 3, H, W), in the place of a bad picture

    @classmethod
    def from_pretrained(
        cls, repo: str | os.PathLike, *, revision: str | None = None, **kwargs: Any
    ) -> ArtGraphPipeline:
        """Loads model and image processor.

        Args:
            repo (`str` or `PathLike`): a folder or Hub id.
            revision (`str`, *optional*): branch, tag or commit on the Hub.
            kwargs: what loading takes (`token`, `cache_dir`, `local_files_only`, `force_download` and `subfolder`;
                `dtype`, `variant`, `attn_implementation` and `device_map` for the model); the others for the pipeline.
        """
        of_both = ("token", "cache_dir", "local_files_only", "force_download", "subfolder")
        of_model = ("dtype", "variant", "attn_implementation", "device_map")
        hub = {"revision": revision} | {name: kwargs.pop(name) for name in of_both if name in kwargs}
        loading = hub | {name: kwargs.pop(name) for name in of_model if name in kwargs}
        model = ArtGraphViTForImageClassification.from_pretrained(repo, **loading)
        image_processor = AutoImageProcessor.from_pretrained(repo, trust_remote_code=False, **hub)
        return cls(model, image_processor, task=PIPELINE_TASK, **kwargs)

    def save_pretrained(self, save_directory: str | os.PathLike, **kwargs: Any) -> None:
        """Saves the model, with the code of this pipeline, and the image processor."""
        self.model.save_pretrained(save_directory, **kwargs)
        self.image_processor.save_pretrained(save_directory)

    def __call__(self, images: Any, **options: Any) -> Any:
        """Predicts.

        Args:
            images: a picture, which is a path, an http(s) address, bytes, a PIL picture, an array or tensor of uint8
                `(H, W)`, `(H, W, 3)`, `(H, W, 4)` or `(3, H, W)`, or an undecoded `datasets.Image`; or several: a
                list, an array `(N, H, W, 3)`, a folder, a `datasets` dataset with a column `image`, or any iterable
                of pictures.
            tasks (`str` or `list[str]`, *optional*): by default all of the model.
            top_k (`int`, *optional*, defaults to 5): labels of a single-label task, the best first.
            threshold (`float` or `dict[str, float]`, *optional*): of the multi-label tasks, in place of the stored
                ones.
            timeout (`float`, *optional*, defaults to 20.0): seconds to wait for a server that was asked for a picture.
            batch_size (`int`, *optional*, defaults to 1), num_workers (`int`, *optional*, defaults to 0).

        Returns:
            For a picture a dict that maps each task to a list of `{"label": str, "score": float}`, by score: the
            `top_k` of a single-label task; of a multi-label task all above their thresholds, which may be none. An
            entry of `other` has a key `means`, which says what it stands for. For several pictures a list of such
            dicts, or an iterator for a dataset or iterable; a picture that cannot be read gives `{"error": why}`. The
            pictures of a folder, in the order of their names, also have their `file`.

        Raises:
            ValueError: if an option is wrong, or the picture cannot be read if it is the only one.
            TypeError: if it is no form of a picture or of several, or a dataset has no column `image`.
        """
        if isinstance(images, (str, os.PathLike)) and os.path.isdir(images):
            files = [str(file) for file in pictures_in_folder(Path(images))]
            return [{"file": file, **answer} for file, answer in zip(files, self(files, **options), strict=True)]
        if getattr(images, "ndim", None) == 4:
            images = list(images)
        if isinstance(images, (list, tuple)):
            return super().__call__(list(images), **options) if images else []
        if isinstance(images, ONE_PICTURE) or hasattr(images, "__array_interface__"):
            (answer,) = super().__call__([images], **options)
            if "error" in answer:
                raise ValueError(f"The picture cannot be read: {answer['error']}.")
            return answer
        # Of a map-style dataset there are items; the lines of an open file are no pictures.
        if not hasattr(images, "__getitem__") and (not hasattr(images, "__iter__") or hasattr(images, "read")):
            raise TypeError(f"{type(images).__name__} is no form of a picture: {FORMS}.")
        answers = super().__call__(_undecoded(images), **options)
        return (answer for answer in answers)  # what transformers returns knows no next()

    def embed(self, images: Any, **options: Any) -> Tensor:
        """Vectors for search: what the heads see of each picture, at length 1, so that a dot product is a cosine.

        Args:
            images: as of a call. Of an iterable all vectors are kept.
            options: `timeout`, `batch_size`, `num_workers`.

        Returns:
            float32 `(N, hidden_size)`; `(hidden_size,)` for one picture that is not in a list.

        Raises:
            ValueError: if a picture cannot be read.
        """
        answers = self(images, embedding=True, **options)
        if isinstance(answers, dict):
            return answers["embedding"]
        vectors = []
        for number, answer in enumerate(answers):
            if "error" in answer:
                raise ValueError(f"Picture {number} cannot be read: {answer['error']}.")
            vectors.append(answer["embedding"])
        return torch.stack(vectors) if vectors else torch.empty(0, self.model.config.hidden_size)

    describe = staticmethod(describe)  # one sentence of an answer

    # ---- what Pipeline asks for ----

    def _sanitize_parameters(
        self,
        tasks: str | Iterable[str] | None = None,
        top_k: int | None = None,
        threshold: float | Mapping[str, float] | None = None,
        timeout: float | None = None,
        embedding: bool = False,
    ) -> tuple[dict, dict, dict]:
        known = {task.name: task for task in self.model.config.tasks}
        post: dict[str, Any] = {"embedding": True} if embedding else {}
        if tasks is not None:
            post["tasks"] = [tasks] if isinstance(tasks, str) else list(tasks)
            for name in post["tasks"]:
                if name not in known:
                    raise ValueError(f"This model has no task {name!r}: its tasks are {', '.join(known)}.")
        if top_k is not None:
            if type(top_k) is not int or top_k < 1:
                raise ValueError(f"top_k={top_k!r}: use a whole number of at least 1.")
            post["top_k"] = top_k
        if threshold is not None:
            multi = [task.name for task in known.values() if task.is_multi_label]
            post["thresholds"] = threshold if isinstance(threshold, Mapping) else dict.fromkeys(multi, threshold)
            for name, value in post["thresholds"].items():
                if name not in multi:
                    raise ValueError(f"threshold names {name!r}, which is not a multi-label task of this model.")
                if not isinstance(value, (int, float)) or not 0 < value < 1:
                    raise ValueError(f"threshold={value!r}: use a number above 0 and below 1.")
        return {} if timeout is None else {"timeout": timeout}, {}, post

    def preprocess(self, image: Any, timeout: float = 20.0) -> dict[str, Any]:
        try:
            picture = self._picture(image, timeout)
        except BadPictureError as error:
            return {"pixel_values": self._blank, "error": error.reason.rstrip(".")}
        return {"pixel_values": self.image_processor(picture, return_tensors="pt")["pixel_values"], "error": None}

    def _picture(self, image: Any, timeout: float) -> Image.Image:
        if isinstance(image, Mapping) and "image" in image:  # a row of a dataset
            image = image["image"]
        if isinstance(image, str) and image.startswith(("http://", "https://")):
            return _fetched(image, timeout)
        if isinstance(image, (str, os.PathLike)):
            image = {"path": os.fspath(image)}
        elif isinstance(image, (bytes, bytearray, memoryview)):
            image = {"bytes": bytes(image)}
        if isinstance(image, Mapping):
            if not image.keys() & {"bytes", "path"}:
                raise TypeError(f"A row with {', '.join(map(str, image))} has no picture: call its column image.")
            return read_picture(image, at_least=decoding_side(self.image_processor))
        if isinstance(image, Image.Image):
            return upright_rgb(image)
        if isinstance(image, Tensor) or hasattr(image, "__array_interface__"):
            return upright_rgb(_from_array(image))
        no_form = f"{type(image).__name__} is no form of a picture: {FORMS}"
        raise BadPictureError(None, "there is no picture" if image is None else no_form)

    def _forward(self, model_inputs: dict[str, Any]) -> dict[str, Any]:
        pixel_values = model_inputs["pixel_values"].to(self.model.backbone.dtype)  # (B, 3, H, W)
        output = self.model(pixel_values=pixel_values)
        logits = {f"{name} logits": values.float() for name, values in output.logits.items()}  # each (B, C)
        return {"pooled": output.pooled.float(), **logits, "error": model_inputs["error"]}

    def postprocess(
        self,
        outputs: dict[str, Any],
        tasks: Iterable[str] | None = None,
        top_k: int = 5,
        thresholds: Mapping[str, float] | None = None,
        embedding: bool = False,
    ) -> Any:
        if outputs["error"] is not None:
            return {"error": outputs["error"]}
        if embedding:
            return {"embedding": F.normalize(outputs["pooled"][0], dim=-1)}  # (hidden,)
        stored = {**self.model.config.thresholds, **(thresholds or {})}
        known = {task.name: task for task in self.model.config.tasks}
        return {
            name: ranked_labels(outputs[f"{name} logits"], known[name], top_k, stored.get(name, THRESHOLD))[0]
            for name in (known if tasks is None else tasks)
        }


def ranked_labels(logits: Tensor, task: Task, top_k: int, threshold: Any) -> list[list[dict[str, Any]]]:
    """The labels of each picture for one task, with their scores, the best first.

    Args:
        logits (`FloatTensor` of shape `(B, C)`).
        task (`Task`).
        top_k (`int`): how many of a single-label task.
        threshold (`float` or list of `C` of them): above which labels of a multi-label task are predicted.
    """
    scores, order = label_scores(logits, task).sort(descending=True, stable=True)  # (B, C) each
    if task.is_multi_label:
        is_chosen = predicted_labels(logits, task, threshold).gather(1, order)  # (B, C), in the order of the scores
        chosen = [row.nonzero()[:, 0].tolist() for row in is_chosen]
    else:
        chosen = [list(range(min(top_k, task.num_labels)))] * len(logits)
    most = max((ranks[-1] + 1 for ranks in chosen if ranks), default=0)  # no more than these leave the tensors
    rows = zip(order[:, :most].tolist(), scores[:, :most].tolist(), chosen, strict=True)
    return [[_entry(task, labels[rank], values[rank]) for rank in ranks] for labels, values, ranks in rows]


def _entry(task: Task, index: int, score: float) -> dict[str, Any]:
    label = task.labels[index]
    entry = {"label": label, "score": score}
    if task.rare == OTHER and label == OTHER:
        entry["means"] = f"another {task.name} than the {task.num_labels - 1} that are named"
    return entry


def pictures_in_folder(folder: Path) -> list[Path]:
    """The files in a folder, and in those in it, also by links, that are called as pictures are; sorted by name.

    Raises:
        ValueError: if there is none.
    """
    files, seen = [], set()
    for here, folders, names in os.walk(folder, followlinks=True):
        seen.add(os.path.realpath(here))
        folders[:] = [name for name in folders if os.path.realpath(os.path.join(here, name)) not in seen]
        files += [Path(here, name) for name in names if Path(name).suffix.lower() in PICTURE_SUFFIXES]
    files = sorted(file for file in files if file.is_file())
    if not files:
        raise ValueError(f"The folder {folder} holds no picture ({', '.join(sorted(PICTURE_SUFFIXES))}).")
    return files


def _undecoded(images: Any) -> Iterator[Any]:
    """Of a `datasets` dataset its rows with pictures as they are stored, so that a bad one does not end the pass."""
    features = getattr(images, "features", None)
    features = features if isinstance(features, Mapping) else {}  # a column alone has one feature
    if features and hasattr(images, "decode"):  # of a stream; a cast would not undo what threads decode ahead
        images = images.decode(False)
    elif hasattr(features.get("image"), "decode") and hasattr(images, "cast_column"):
        images = images.cast_column("image", type(features["image"])(decode=False))
    yield from images


def _fetched(url: str, timeout: float) -> Image.Image:
    try:
        return upright_rgb(load_image(url, timeout=timeout))
    except UnidentifiedImageError as error:  # such as the page that says 404
        raise BadPictureError(None, f"{url} was not fetched: what it gives is no picture") from error
    except Exception as error:  # of the network, of HTTP or of a decoder
        raise BadPictureError(None, f"{url} was not fetched: {error or type(error).__name__}") from error


def _from_array(array: Any) -> Image.Image:
    if isinstance(array, Tensor):
        array = array.detach().cpu().numpy()
    if array.ndim == 3 and array.shape[0] == 3 and array.shape[2] not in (3, 4):
        array = array.transpose(1, 2, 0)  # (H, W, 3), of a tensor as torch has them
    is_picture = array.ndim == 2 or (array.ndim == 3 and array.shape[2] in (3, 4))
    if array.dtype.name != "uint8" or not is_picture:
        given = f"an array of {array.dtype.name} and shape {tuple(array.shape)}"
        raise BadPictureError(
            None, f"{given} is no picture: give uint8 of shape (H, W), (H, W, 3), (H, W, 4) or (3, H, W)"
        )
    return Image.fromarray(array)
