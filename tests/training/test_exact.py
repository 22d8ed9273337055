"""The gradient of a step and the figures of an evaluation do not depend on the division of their rows, in float64."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from artgraph_vit.data import ArtGraphCollator
from artgraph_vit.training import trainer as trainer_module

from .exact import EVAL_SIZES, UnevenArtworks, build_trainer, joined_gradients, mix_neighbours
from .processes import relative_error, run_tiny
from .tiny import TASKS, tiny_model

SCRIPT = Path(__file__).with_name("exact.py")
ROWS = 64


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> dict[int, Path]:
    """By the number of processes: the gradients of two steps at accumulation 1, 4 and 16, and the evaluations."""
    folders = {}
    for processes in (1, 2, 3, 4):
        folder = folders[processes] = tmp_path_factory.mktemp(f"processes-{processes}")
        accumulations = () if processes == 3 else ("1", "4", "16")  # 64 rows do not divide by 3: it only evaluates
        if processes in (1, 2):
            accumulations += tuple(f"{number}:mixed" for number in (1, 4))
        run_tiny(folder, ROWS, *accumulations, processes=processes, script=SCRIPT)
        assert (folder / f"world-size-{processes}").exists()
    return folders


def closed_form_gradients() -> dict[str, torch.Tensor]:
    """Of the joined loss of all rows of the first step at once, written out without the library's losses."""
    model = tiny_model(seed=0, head_dropout=0.0).double()
    with torch.no_grad():
        model.log_variances.copy_(torch.tensor([0.4, -0.6, 0.2]))
    rows = UnevenArtworks(ROWS + ROWS // 2, seed=1).rows[:ROWS]
    batch = ArtGraphCollator(TASKS)(rows)
    logits, labels = model(batch["pixel_values"]).logits, batch["labels"]
    losses = []
    for name, weights in (("artist", [0.3, 5.0, 1.0]), ("genre", [0.7, 1.9])):
        known = labels[name] >= 0
        weight = torch.tensor(weights, dtype=torch.float32).double()[labels[name][known]]
        chosen = torch.log_softmax(logits[name][known], -1)[torch.arange(int(known.sum())), labels[name][known]]
        losses.append(-(weight * chosen).sum() / weight.sum())
    known = labels["tags"][:, 0] >= 0
    p, y = torch.sigmoid(logits["tags"][known]), labels["tags"][known].double()
    losses.append(-(y * p.log() + (1 - y) * (1 - p).log()).mean())
    return joined_gradients(losses, model)


def test_one_process_has_the_gradient_of_the_closed_form_at_any_accumulation(tmp_path, monkeypatch):
    monkeypatch.setattr(trainer_module, "draw_mix", mix_neighbours)
    for what in ("1:mixed", "4:mixed"):
        build_trainer(tmp_path, ROWS, what).train()
    mixed = [load_file(tmp_path / f"gradients-0-{number}:mixed-0.safetensors") for number in (1, 4)]
    assert relative_error(mixed[1], mixed[0]) < 1e-12
    for accumulation in (1, 4, 16):
        build_trainer(tmp_path, ROWS, str(accumulation)).train()
        found = load_file(tmp_path / f"gradients-0-{accumulation}-0.safetensors")
        assert relative_error(found, closed_form_gradients()) < 1e-12
        half = [load_file(tmp_path / f"gradients-0-{number}-1.safetensors") for number in (1, accumulation)]
        assert relative_error(half[1], half[0]) < 1e-12  # the second step has half as many rows


@pytest.mark.slow
@pytest.mark.parametrize("accumulation", [1, 4, 16])
@pytest.mark.parametrize("processes", [1, 2, 4])
def test_a_steps_gradient_does_not_depend_on_the_division(runs, processes, accumulation):
    whole, divided = runs[1], runs[processes]
    for step in (0, 1):  # the second has half as many rows: 8 micro-batches of 16
        expected = load_file(whole / f"gradients-0-1-{step}.safetensors")
        for process in range(processes):
            actual = load_file(divided / f"gradients-{process}-{accumulation}-{step}.safetensors")
            assert relative_error(actual, expected) < 1e-12
    assert relative_error(load_file(whole / "gradients-0-1-0.safetensors"), closed_form_gradients()) < 1e-12


@pytest.mark.slow
@pytest.mark.parametrize("accumulation", [1, 4])
@pytest.mark.parametrize("processes", [1, 2])
def test_mixed_rows_have_one_gradient_however_they_are_divided(runs, processes, accumulation):
    expected = load_file(runs[1] / "gradients-0-1:mixed-0.safetensors")
    assert relative_error(expected, closed_form_gradients()) > 0.1  # another loss
    for process in range(processes):
        actual = load_file(runs[processes] / f"gradients-{process}-{accumulation}:mixed-0.safetensors")
        assert relative_error(actual, expected) < 1e-12


def test_half_of_the_processes_had_no_known_tags():
    rows = UnevenArtworks(ROWS + ROWS // 2, seed=1).rows
    assert all(row["tags"] is None for row in rows[: ROWS // 2])
    assert any(row["tags"] for row in rows[ROWS // 2 :])


@pytest.mark.slow
@pytest.mark.parametrize("processes", [2, 3, 4])
def test_an_evaluation_counts_every_artwork_once(runs, processes):
    """Sizes from 1 artwork on, with batches of 1, 4 and 5."""
    (expected,), actual = _evaluations(runs[1], 1), _evaluations(runs[processes], processes)
    assert set(expected) == {f"{size}/{batch}" for size in EVAL_SIZES for batch in (1, 4, 5)}
    for of_process in actual:
        for case, metrics in expected.items():
            assert metrics["eval_genre_known_rows"] == int(case.split("/")[0])
            for name, value in metrics.items():
                if not name.endswith(("runtime", "per_second", "preparation_time")):
                    assert of_process[case][name] == pytest.approx(value, rel=1e-9, abs=1e-12, nan_ok=True), (
                        case,
                        name,
                    )


def _evaluations(folder: Path, processes: int) -> list[dict]:
    return [json.loads((folder / f"metrics-{process}.json").read_text()) for process in range(processes)]
