"""Mixup: pictures of a batch are mixed in pairs, and so are their soft targets (model/losses.py).

Zhang et al., "mixup: Beyond Empirical Risk Minimization", ICLR 2018. What is drawn depends on the seed and on the
place in the run alone, so a resumed run draws it again, and nothing else that is random notices.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True)
class Mix:
    """How the rows of one batch are mixed: `partners`, int64 `(B,)`, and the `share` of each row that is its own."""

    partners: Tensor
    share: float

    def pixels(self, pixels: Tensor) -> Tensor:
        """Pixels mixed, float `(B, 3, H, W)`."""
        return self.share * pixels + (1 - self.share) * pixels[self.partners.to(pixels.device)]


def draw_mix(rows: int, alpha: float, seed: int, *place: int) -> Mix:
    """How to mix a batch of `rows`: the share is drawn from Beta(alpha, alpha).

    Args:
        rows (`int`), alpha (`float`, above 0), seed (`int`).
        place (`int`): in the run, told by any whole numbers from 0 on.
    """
    random = np.random.default_rng((seed, *place))
    return Mix(torch.from_numpy(random.permutation(rows)), float(random.beta(alpha, alpha)))
