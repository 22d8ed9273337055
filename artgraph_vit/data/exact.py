"""Pictures that are stored at the very size a model takes, so that reading them costs next to nothing.

They are PPM files, which any picture viewer reads: a header, then the bytes of the pixels, resized and cropped by the
image processor already. A comment in the header says by which: another one would need other pixels.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

import numpy as np
from transformers import BaseImageProcessor

from .sources import DataError

_MARK = b"P6\n# artgraph_vit "
# What does not change the bytes: it comes after them, or says nothing of pixels.
_AFTER = {"do_rescale", "rescale_factor", "do_normalize", "image_mean", "image_std", "return_tensors", "data_format"}
_AFTER |= {"image_processor_type", "processor_class", "_processor_class", "_name_or_path", "device"}


def exact_mark(image_processor: BaseImageProcessor) -> bytes:
    """The beginning of the files that are prepared for an image processor; it names how that resizes and crops."""
    settings = {
        name: value for name, value in image_processor.to_dict().items() if name not in _AFTER and value is not None
    }
    settings["processor"] = type(image_processor).__name__.removesuffix("Fast").removesuffix("Pil")
    geometry = json.dumps(settings, default=dict, sort_keys=True)
    return _MARK + hashlib.sha256(geometry.encode()).hexdigest()[:16].encode() + b"\n"


def encode_exact(pixels: np.ndarray, mark: bytes) -> bytes:
    """A PPM file of pixels, uint8 `(H, W, 3)`, that an image processor has resized and cropped."""
    height, width, _ = pixels.shape
    return mark + f"{width} {height}\n255\n".encode() + pixels.tobytes()


def exact_pixels(image: Mapping[str, Any], mark: bytes) -> np.ndarray | None:
    """The pixels of an undecoded picture, uint8 `(H, W, 3)`, if it was prepared for the image processor that has the
    mark; None for any other picture.

    Raises:
        DataError: if it was prepared for another image processor.
    """
    data = image.get("bytes")
    if data is None or not data.startswith(_MARK):
        return None
    if not data.startswith(mark):
        raise DataError(
            "The pictures were prepared for an image processor that resizes otherwise than this backbone's: prepare "
            "them anew with --exact_for and this backbone, or without."
        )
    size, _, pixels = data[len(mark) :].split(b"\n", 2)
    width, height = map(int, size.split())
    return np.frombuffer(bytearray(pixels), np.uint8).reshape(height, width, 3)  # a copy, which may be written to
