"""One picture, as it is stored: checked, upright, RGB, and no larger than needed; and by what it is known again."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from PIL import Image

from ..data.batches import PictureTransform, encode_exact, size_to_decode
from ..model.pictures import read_picture

THUMBNAIL = (17, 16)  # width, height: 16 steps a line for 16 lines (duplicates.py)


class EncodedPicture(NamedTuple):
    """A picture as it is stored: a JPEG, or a PPM of exact pixels; its sha256; and 16 x 17 grey values of it."""

    data: bytes
    digest: str
    thumbnail: bytes


@dataclass(frozen=True)
class PictureEncoder:
    """Makes [`EncodedPicture`]s.

    Args:
        size (`int`): the shorter side, in pixels, of what is stored; a picture that is smaller stays so.
        exact_for ([`PictureTransform`], *optional*): store the pixels that it gives, in place of a JPEG.
        jpeg_scale (`str`): as of [`PictureTransform`]; in its terms the shorter side is what the model takes.
    """

    size: int
    exact_for: PictureTransform | None = None
    jpeg_scale: str = "twice"

    def settings(self) -> list[Any]:
        """All that the bytes depend on, beside the picture."""
        if self.exact_for is not None:
            return [None, self.exact_for.exact_mark.decode(), self.exact_for.jpeg_scale]
        return [self.size, None, self.jpeg_scale]

    @property
    def description(self) -> str:
        """What is stored, for the report and the card."""
        if self.exact_for is None:
            return f"JPEGs whose shorter side has at most {self.size} pixels"
        name = type(self.exact_for.image_processor).__name__
        return f"the very pixels, uncompressed, of a backbone's {name}; they serve backbones that resize like it alone"

    @property
    def suffix(self) -> str:
        return ".jpg" if self.exact_for is None else ".ppm"

    def __call__(self, image: Mapping[str, Any]) -> EncodedPicture:
        if self.exact_for is not None:
            pixels = self.exact_for.pixels(image).permute(1, 2, 0).numpy()  # (H, W, 3)
            data, picture = encode_exact(pixels, self.exact_for.exact_mark), Image.fromarray(pixels)
        else:
            picture = read_picture(image, at_least=size_to_decode(self.jpeg_scale, self.size))
            shorter = min(picture.size)
            if shorter > self.size:
                width, height = (max(1, round(side * self.size / shorter)) for side in picture.size)
                picture = picture.resize((width, height), Image.Resampling.BICUBIC)
            file = io.BytesIO()
            picture.save(file, "JPEG", quality=90)
            data = file.getvalue()
        thumbnail = picture.convert("L").resize(THUMBNAIL, Image.Resampling.BOX)
        return EncodedPicture(data, hashlib.sha256(data).hexdigest(), thumbnail.tobytes())
