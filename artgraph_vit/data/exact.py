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
_GEOMETRY = ("do_resize", "size", "resample", "do_center_crop", "crop_size", "do_pad", "pad_size")


def exact_mark(image_processor: BaseImageProcessor) -> bytes:
    """The beginning of the files that are prepared for an image processor; it names how that resizes and crops."""
    settings = image_processor.to_dict()
    geometry = json.dumps([settings.get(name) for name in _GEOMETRY], default=dict, sort_keys=True)
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
            "them with this backbone's, or without --exact."
        )
    size, _, pixels = data[len(mark) :].split(b"\n", 2)
    width, height = map(int, size.split())
    return np.frombuffer(bytearray(pixels), np.uint8).reshape(height, width, 3)  # a copy, which may be written to
