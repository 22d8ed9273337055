"""Random crops, flips and colours of train pictures, each a pure function of (seed, epoch, picture), and mixup.

So a run that is resumed, with any number of processes and workers, sees what it would have seen. The evaluation
splits are never augmented.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import PurePath
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageEnhance
from torch import Tensor

TRIES = 10
RATIOS = (3 / 4, 4 / 3)


@dataclass
class Augmentation:
    """What is drawn anew for a train picture in each epoch.

    Args:
        crop_scale (`float`, *optional*, defaults to 1.0): least share of the picture's area that a crop keeps, in
            (0, 1]; 1 takes the whole picture. The crops are Inception's (Szegedy et al., "Going Deeper with
            Convolutions", CVPR 2015): the share is uniform, width : height log-uniform from 3:4 to 4:3.
        horizontal_flip (`bool`, *optional*, defaults to `False`): mirror every other picture.
        color_jitter (`float`, *optional*, defaults to 0.0): brightness, contrast and saturation change, in this order,
            by factors from `1 - color_jitter` to `1 + color_jitter`; in [0, 1].
        seed (`int`, *optional*, defaults to 42): at least 0.

    Raises:
        ValueError: if a number is out of its range.
    """

    crop_scale: float = 1.0
    horizontal_flip: bool = False
    color_jitter: float = 0.0
    seed: int = 42
    _epoch: Tensor = field(
        default_factory=lambda: torch.zeros(1, dtype=torch.int64), init=False, repr=False, compare=False
    )

    def __post_init__(self) -> None:
        if not 0 < self.crop_scale <= 1:
            raise ValueError(f"crop_scale={self.crop_scale}: use a number above 0, up to 1, which crops nothing.")
        if not 0 <= self.color_jitter <= 1:
            raise ValueError(f"color_jitter={self.color_jitter}: use a number from 0, which changes nothing, to 1.")

    def set_epoch(self, epoch: int) -> None:
        """Reaches persistent workers of a DataLoader too, if it was called before they started."""
        self._epoch.share_memory_()[0] = epoch

    def generator(self, image: Mapping[str, Any]) -> np.random.Generator:
        """What one undecoded picture is augmented by in this epoch; its folder does not matter."""
        data = image.get("bytes")
        digest = zlib.crc32(PurePath(str(image.get("path"))).name.encode() if data is None else data)
        return np.random.default_rng((self.seed, int(self._epoch), digest))

    def box(self, size: tuple[int, int], random: np.random.Generator) -> tuple[int, int, int, int]:
        """The crop of a picture of `size`, width and height: its left, top, right and bottom."""
        width, height = size
        if self.crop_scale == 1:
            return (0, 0, width, height)
        areas = width * height * random.uniform(self.crop_scale, 1, TRIES)
        ratios = np.exp(random.uniform(math.log(RATIOS[0]), math.log(RATIOS[1]), TRIES))
        sides = np.rint([np.sqrt(areas * ratios), np.sqrt(areas / ratios)]).astype(int)  # (2, tries)
        fits = (sides >= 1).all(0) & (sides[0] <= width) & (sides[1] <= height)
        if not fits.any():  # it is too long for such a crop
            return (0, 0, width, height)
        crop_width, crop_height = map(int, sides[:, fits.argmax()])
        left = int(random.integers(width - crop_width, endpoint=True))
        top = int(random.integers(height - crop_height, endpoint=True))
        return (left, top, left + crop_width, top + crop_height)

    def finish(self, pixels: Tensor, random: np.random.Generator) -> Tensor:
        """Flips and colours what the model will see, uint8 `(3, H, W)`."""
        if self.horizontal_flip and random.random() < 0.5:
            pixels = pixels.flip(-1)
        if self.color_jitter:
            picture = Image.fromarray(pixels.permute(1, 2, 0).numpy())
            for enhance in (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color):
                picture = enhance(picture).enhance(1 + self.color_jitter * random.uniform(-1, 1))
            pixels = torch.from_numpy(np.array(picture)).permute(2, 0, 1)
        return pixels

    def side_before_crop(self, side: int) -> int:
        """The pixels that a side needs, so that even the smallest crop has one of `side` pixels."""
        return math.ceil(side / math.sqrt(self.crop_scale))


@dataclass(frozen=True)
class Mix:
    """Mixup (Zhang et al., ICLR 2018) of the rows of one batch, in pairs, whose soft targets model/losses.py mixes:
    `partners`, int64 `(B,)`, and the `share` of each row that is its own."""

    partners: Tensor
    share: float

    def pixels(self, pixels: Tensor) -> Tensor:
        """Pixels mixed, float `(B, 3, H, W)`."""
        return self.share * pixels + (1 - self.share) * pixels[self.partners.to(pixels.device)]


def draw_mix(rows: int, alpha: float, seed: int, *place: int) -> Mix:
    """How to mix a batch of `rows`, at a `place` in the run told by whole numbers: the share is drawn from
    Beta(alpha, alpha), and nothing else that is random notices."""
    random = np.random.default_rng((seed, *place))
    return Mix(torch.from_numpy(random.permutation(rows)), float(random.beta(alpha, alpha)))
