"""Logit adjustment after training, on Gaussians whose best classifier is known."""

import pytest
import torch
from sklearn.metrics import balanced_accuracy_score, f1_score
from torch import Tensor

from artgraph_vit import ArtGraphViTConfig, ArtGraphViTForImageClassification, Task
from artgraph_vit.evaluation import adjustment
from artgraph_vit.evaluation.adjustment import TAUS
from artgraph_vit.evaluation.choose import Scores, choose
from artgraph_vit.model.tasks import SINGLE_LABEL

CLASSES = 10
STYLE = Task("style", SINGLE_LABEL, tuple("abcdefghij"))
PRIOR = 0.45 ** torch.arange(CLASSES).double()
PRIOR /= PRIOR.sum()
ANGLES = 2 * torch.pi * torch.arange(CLASSES) * 3 / CLASSES  # the most frequent ones are no neighbours
MEANS = 2.6 * torch.stack([ANGLES.cos(), ANGLES.sin()], 1).double()


def draw(rows: int, prior: Tensor, seed: int) -> tuple[Tensor, Tensor]:
    """Points `(rows, 2)` of unit Gaussians around the means, and their classes."""
    random = torch.Generator().manual_seed(seed)
    labels = torch.multinomial(prior, rows, replacement=True, generator=random)
    return MEANS[labels] + torch.randn(rows, 2, generator=random, dtype=torch.float64), labels


def log_joint(points: Tensor) -> Tensor:
    """Of class and point, but for what is the same for all classes: linear in the point, as a head is."""
    return points @ MEANS.T - MEANS.square().sum(-1) / 2 + PRIOR.log()


def bayes_balanced_accuracy() -> float:
    """The integral of the largest of the densities, over the classes: no classifier's mean recall is above it."""
    axis = torch.linspace(-9, 9, 1201, dtype=torch.float64)
    points = torch.cartesian_prod(axis, axis)
    largest = torch.stack([(-(points - mean).square().sum(-1) / 2).exp() for mean in MEANS]).max(0).values
    return (largest.sum() * (axis[1] - axis[0]) ** 2 / (2 * torch.pi) / CLASSES).item()


def head(tiny, overconfidence: float = 1.0):
    """A head that gives the logarithm of the true posterior, too sure of itself by a factor."""
    config = ArtGraphViTConfig(backbone_config={"model_type": "vit", **tiny}, tasks=[STYLE])
    model = ArtGraphViTForImageClassification(config).eval()
    with torch.no_grad():
        model.heads.style.weight.zero_()[:, :2] = overconfidence * MEANS
        model.heads.style.bias.copy_(overconfidence * (PRIOR.log() - MEANS.square().sum(-1) / 2))
    return model.heads.style


def said(head, points: Tensor) -> Tensor:
    with torch.no_grad():
        return head(torch.nn.functional.pad(points.float(), (0, 14)))


@pytest.mark.parametrize("overconfidence", [1.0, 2.5])
def test_at_tau_one_it_reaches_the_bayes_balanced_accuracy(monkeypatch, tiny, overconfidence):
    monkeypatch.setattr(adjustment, "TAUS", (1.0,))
    adjusted = head(tiny, overconfidence)
    points, labels = draw(60_000, PRIOR, seed=1)
    tuned = choose(
        [STYLE], Scores({"style": said(adjusted, points)}, {"style": labels}), "shrunk", {"style": PRIOR.log()}
    )
    fresh, truth = draw(200_000, torch.ones(CLASSES), seed=2)  # balanced, so that each recall is measured well
    plain = balanced_accuracy_score(truth, said(adjusted, fresh).argmax(-1))
    for name, values in tuned.items():
        setattr(adjusted.config, name, values)
    bayes = bayes_balanced_accuracy()
    assert plain < bayes - 0.15
    assert balanced_accuracy_score(truth, said(adjusted, fresh).argmax(-1)) == pytest.approx(bayes, abs=0.003)
    assert tuned["tuning"]["tasks"]["style"]["tau"] == 1


def test_the_tau_of_the_best_macro_f1_is_chosen():
    points, labels = draw(20_000, PRIOR, seed=3)
    logits = log_joint(points)
    rows = torch.cat([logits, 9 * logits.flip(-1)]), torch.cat([labels, torch.full_like(labels, -100)])
    tau = adjustment.best_tau(*rows, STYLE, PRIOR.log())
    macro_f1s = {
        at: f1_score(labels, (logits - at * PRIOR.log()).argmax(-1), average="macro", zero_division=0) for at in TAUS
    }
    assert macro_f1s[tau] == max(macro_f1s.values()) > max(macro_f1s[0.0], macro_f1s[1.0]) + 0.01
    assert list(macro_f1s) == pytest.approx([0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1])


def test_no_adjustment_may_win():
    random = torch.Generator().manual_seed(0)
    logits = torch.randn(500, CLASSES, generator=random)
    scores = Scores({"style": logits}, {"style": logits.argmax(-1)})
    tuned = choose([STYLE], scores, "shrunk", {"style": PRIOR.log()})
    assert tuned["tuning"]["tasks"]["style"]["tau"] == 0
    assert tuned["logit_offsets"] == {}
    assert choose([STYLE], scores)["logit_offsets"] == {}
