"""Mixup and cutmix: pictures of a batch are mixed in pairs, and each counts by its part in both pictures' labels.

Zhang et al., "mixup: Beyond Empirical Risk Minimization", ICLR 2018; Yun et al., "CutMix: Regularization Strategy to
Train Strong Classifiers with Localizable Features", ICCV 2019. Notable:
- Labels are never averaged: a row's loss is λ·l(y_a) + (1-λ)·l(y_b), where each label keeps its mask and its class
  weight.
- What is drawn depends on the seed and on the place in the run alone, so a resumed run draws it again, and nothing
  else that is random notices.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True)
class Mix:
    """How the rows of one batch are mixed.

    Args:
        partners (`LongTensor` of shape `(B,)`, on the CPU): the row that each row is mixed with.
        share (`float`): λ, the part of each row that is its own, in [0, 1].
        box (`tuple[int, int, int, int]`, *optional*): top, bottom, left and right of what a picture takes over from
            its partner's, in pixels; by default λ of the one picture and 1-λ of the other are added up.
    """

    partners: Tensor
    share: float
    box: tuple[int, int, int, int] | None = None

    def pixels(self, pixels: Tensor) -> Tensor:
        """Pixels mixed, float `(B, 3, H, W)`."""
        others = pixels[self.partners.to(pixels.device)]
        if self.box is None:
            return self.share * pixels + (1 - self.share) * others
        top, bottom, left, right = self.box
        mixed = pixels.clone()
        mixed[..., top:bottom, left:right] = others[..., top:bottom, left:right]
        return mixed

    def targets(self, labels: Mapping[str, Tensor]) -> dict[str, Any]:
        """`labels` as they are; `second_labels`, those of the partners; and `share`, float32 `(B,)`."""
        partners = self.partners.to(next(iter(labels.values())).device)
        return {
            "labels": labels,
            "second_labels": {name: values[partners] for name, values in labels.items()},
            "share": torch.full(partners.shape, self.share, dtype=torch.float32, device=partners.device),
        }

    def names(self, names: Sequence[str]) -> list[str]:
        """What the mixed rows are called."""
        return [f"{name} mixed with {names[partner]}" for name, partner in zip(names, self.partners, strict=True)]


def targets_of(batch: Mapping[str, Any]) -> dict[str, Any]:
    """The part of a batch by which the model computes its losses; its `mix`, if it has one, is a [`Mix`]."""
    mix = batch.get("mix")
    return {"labels": batch["labels"]} if mix is None else mix.targets(batch["labels"])


@dataclass
class Mixing:
    """Draws how train batches are mixed; where both ways are on, each is taken for half of the batches.

    Args:
        mixup_alpha, cutmix_alpha (`float`): λ of each way is drawn from Beta(alpha, alpha); 0 turns it off. At least
            one is above 0.
        seed (`int`): at least 0.
    """

    mixup_alpha: float
    cutmix_alpha: float
    seed: int

    def draw(self, shape: tuple[int, ...], *place: int) -> Mix:
        """How to mix pixels of `shape`, `(B, 3, H, W)`, at a place in the run, told by any whole numbers from 0 on."""
        random = np.random.default_rng((self.seed, *place))
        cuts = self.cutmix_alpha > 0 and (self.mixup_alpha == 0 or random.random() < 0.5)
        alpha = self.cutmix_alpha if cuts else self.mixup_alpha
        partners, share = torch.from_numpy(random.permutation(shape[0])), float(random.beta(alpha, alpha))
        if not cuts:
            return Mix(partners, share)
        size = np.array(shape[-2:])
        sides = np.rint(size * np.sqrt(1 - share)).astype(int)
        start = random.integers(size) - sides // 2  # the middle may be anywhere, so a box may lie partly outside
        (top, left), (bottom, right) = start.clip(0), (start + sides).clip(0, size)
        taken = (bottom - top) * (right - left) / size.prod()
        return Mix(partners, float(1 - taken), (int(top), int(bottom), int(left), int(right)))
