"""Training from a stream: each row once an epoch, the same steps however divided, exact resume and evaluation."""

import json
import math
from itertools import chain
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch.utils.data import DataLoader

from artgraph_vit.data import ArtGraphCollator, DataArguments
from artgraph_vit.data.streaming import StreamedArtworks
from artgraph_vit.errors import UserError
from artgraph_vit.model.tasks import UNKNOWN
from artgraph_vit.training.arguments import ModelArguments
from artgraph_vit.training.run import departures, recipe_of

from .processes import run_tiny
from .streaming_run import (
    BUFFER,
    EVAL_ROWS,
    SEED,
    TASKS,
    TRAIN_ROWS,
    NumberedPictures,
    epoch_order,
    numbers,
    raw_rows,
    streamed_trainer,
)
from .tiny import StopAt, Stopped

STEPS_AN_EPOCH = 4  # 50 rows in global batches of 16: the last step has 2
FILLED_UP = -100
SCRIPT = Path(__file__).with_name("streaming_run.py")


@pytest.fixture(scope="module", autouse=True)
def _one_thread():
    """As in the processes that are compared."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def orders() -> list[list[int]]:
    return [epoch_order(raw_rows(TRAIN_ROWS, 1), epoch) for epoch in range(4)]


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """One process without workers, not interrupted."""
    folder = tmp_path_factory.mktemp("alone")
    trainer = streamed_trainer(folder)
    start = {name: parameter.detach().clone() for name, parameter in trainer.model.named_parameters()}
    trainer.train()
    assert all(not torch.equal(start[name], parameter) for name, parameter in trainer.model.named_parameters())
    return trainer


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    """As `alone`, with dropout, so that the random state matters."""
    trainer = streamed_trainer(tmp_path_factory.mktemp("uninterrupted"), head_dropout=0.1)
    trainer.train()
    return trainer


def run_script(folder: Path, *arguments: object, processes: int = 1, **options):
    done = run_tiny(folder, *arguments, processes=processes, script=SCRIPT, **options)
    assert done.returncode != 0 or (folder / f"world-size-{processes}").exists()
    return done


def read(folder: Path, name: str, processes: int) -> list:
    return [json.loads((folder / f"{name}-{process}.json").read_text()) for process in range(processes)]


def own_rows(order: list[int], process: int, processes: int, batch: int, accumulation: int = 1) -> list[list[int]]:
    """What each step of an epoch gives to a process."""
    batches = [order[start : start + batch] for start in range(process * batch, len(order), processes * batch)]
    micro_batches = math.ceil(len(order) / (processes * batch))
    batches += [[]] * (micro_batches - len(batches))
    steps = (batches[start : start + accumulation] for start in range(0, micro_batches, accumulation))
    return [list(chain.from_iterable(step)) for step in steps]


# ---- the division, without a trainer ----


@pytest.mark.parametrize(
    ("rows", "batch", "processes", "workers"),
    [(33, 4, 1, 0), (33, 4, 2, 2), (33, 4, 4, 3), (8, 2, 1, 3), (8, 2, 4, 0), (3, 2, 2, 0), (3, 2, 4, 1)],
)
def test_each_row_goes_once_to_the_step_it_belongs_to(tmp_path, rows, batch, processes, workers):
    log = tmp_path / "decoded"
    stream = StreamedArtworks(raw_rows(rows, 1), NumberedPictures(log), rows, BUFFER, SEED)
    order = epoch_order(raw_rows(rows, 1), 0)
    per_step = processes * batch
    for process in range(processes):
        log.write_text("")
        part = stream.part(process, processes, batch)
        loader = DataLoader(part, batch, num_workers=workers, collate_fn=ArtGraphCollator(TASKS))
        batches = list(loader)
        assert len(batches) == len(loader) == math.ceil(rows / per_step)
        expected = [
            order[start : start + batch] for start in range(process * batch, len(batches) * per_step, per_step)
        ]
        if processes > 1:
            expected = [real + [FILLED_UP] * (batch - len(real)) for real in expected]
        assert [numbers(b["pixel_values"]) for b in batches] == expected
        is_unknown = [(b["labels"]["genre"] == UNKNOWN).tolist() for b in batches]
        assert is_unknown == [[number == FILLED_UP for number in numbers_] for numbers_ in expected]
        decoded = log.read_text().split()
        own = [str(number) for numbers_ in expected for number in numbers_ if number != FILLED_UP]
        assert sorted(name for name in decoded if name != "None") == sorted(own)
        assert decoded.count("None") <= 1


def test_the_order_does_not_depend_on_the_batch_size_but_on_seed_and_epoch():
    def order(batch: int, seed: int = SEED, epoch: int = 0) -> list[int]:
        stream = StreamedArtworks(raw_rows(TRAIN_ROWS, 1), NumberedPictures(), TRAIN_ROWS, BUFFER, seed)
        part = stream.part(0, 1, batch)
        part.set_epoch(epoch)
        return [numbers(row["pixel_values"][None])[0] for row in part]

    assert order(1) == order(7) == order(64)
    assert len({tuple(order(7, seed, epoch)) for seed in (1, 2) for epoch in (0, 1)}) == 4
    unshuffled = StreamedArtworks(raw_rows(9, 1), NumberedPictures(), 9, shuffle_buffer=0)
    assert [numbers(row["pixel_values"][None])[0] for row in unshuffled] == list(range(9))


@pytest.mark.parametrize("persistent", [False, True])
def test_the_epoch_reaches_the_workers(tmp_path, orders, persistent):
    """Through the wrappers of Trainer and accelerate; persistent workers keep the dataset of the first epoch."""
    options = {"dataloader_num_workers": 2, "dataloader_persistent_workers": persistent}
    loader = streamed_trainer(tmp_path, per_device_train_batch_size=4, **options).get_train_dataloader()
    for epoch in (0, 1, 3):
        loader.set_epoch(epoch)
        assert [number for batch in loader for number in numbers(batch["pixel_values"])] == orders[epoch]
    loader.base_dataloader._iterator = None  # ends the workers; the garbage collector waits 5 seconds for each


# ---- the number of rows ----


@pytest.mark.parametrize(
    ("given", "found", "workers"), [(11, "more than 11", 0), (13, "12", 0), (40, "12", 0), (13, "12", 1)]
)
def test_another_number_of_rows_is_an_error(given, found, workers):
    part = StreamedArtworks(raw_rows(12, 1), NumberedPictures(), given).part(0, 2, 4)
    batches = iter(DataLoader(part, 4, num_workers=workers, collate_fn=ArtGraphCollator(TASKS)))
    with pytest.raises(UserError, match=f"The stream holds {found} rows, not {given}: pass the right number"):
        list(batches)
    if workers:
        batches._shutdown_workers()  # as above


# ---- one process ----


def test_one_process_trains_on_each_row_once_an_epoch(alone, orders):
    steps = [alone.rows_of_step[step] for step in range(4 * STEPS_AN_EPOCH)]
    assert steps == [rows for order in orders for rows in own_rows(order, 0, 1, 16)]
    for order in orders:
        assert sorted(order) == list(range(TRAIN_ROWS))


def test_evaluation_of_a_stream_is_that_of_its_rows_at_once(alone):
    metrics = alone.evaluate()
    batch = ArtGraphCollator(TASKS)(list(alone.eval_dataset))
    batch["pixel_values"] = (batch["pixel_values"] / 255 - 0.5) / 0.5
    with torch.no_grad():
        output = alone.model.eval()(**batch)
    assert metrics["eval_loss"] == pytest.approx(output.loss.item(), rel=1e-6)
    assert metrics["eval_genre_known_rows"] == EVAL_ROWS


@pytest.mark.parametrize(
    ("kill_at", "by", "workers"),
    [
        (3, "exception", 0),
        pytest.param(7, "SIGKILL", 2, marks=pytest.mark.slow),
        (9, "exception", 2),
        (16, "exception", 0),
    ],
)
def test_a_killed_run_resumes_to_the_same_bits(tmp_path, uninterrupted, orders, kill_at, by, workers):
    """In phase heads, before and after the boundary, and before the last step, which is not full."""
    options = {"head_dropout": 0.1, "save_strategy": "steps", "save_steps": 1}
    if by == "SIGKILL":
        assigned = ["head_dropout=0.1", 'save_strategy="steps"', "save_steps=1"]
        assert run_script(tmp_path, "--kill-at", kill_at, *assigned, check=False).returncode == -9
    else:
        with pytest.raises(Stopped):
            streamed_trainer(tmp_path, [StopAt(kill_at)], **options).train()
    log = tmp_path / "decoded"
    resumed = streamed_trainer(tmp_path, log=log, dataloader_num_workers=workers, **options)
    resumed.train(resume_from_checkpoint=True)
    done = kill_at - 1
    remaining = [rows for order in orders for rows in own_rows(order, 0, 1, 16)][done:]
    assert list(resumed.rows_of_step) == list(range(done, 4 * STEPS_AN_EPOCH))
    assert list(resumed.rows_of_step.values()) == remaining
    assert len(log.read_text().split()) == sum(map(len, remaining))  # what was skipped was not decoded
    whole = uninterrupted.model.state_dict()
    assert all(torch.equal(tensor, whole[name]) for name, tensor in resumed.model.state_dict().items())


# ---- several processes ----


@pytest.fixture(scope="module")
def two(tmp_path_factory) -> Path:
    """Two processes of two workers, micro-batches of 4, twice a step; resumed in each phase within an epoch."""
    folder = tmp_path_factory.mktemp("two")
    options = ["per_device_train_batch_size=4", "gradient_accumulation_steps=2", "dataloader_num_workers=2"]
    options += ["per_device_eval_batch_size=4", 'save_strategy="steps"', "save_steps=5"]
    run_script(folder, *options, "--resume-from", 5, 15, processes=2)
    return folder


@pytest.mark.slow
def test_two_processes_share_the_rows_of_a_step(two, orders):
    for process, runs in enumerate(read(two, "rows", 2)):
        steps = [rows for order in orders for rows in own_rows(order, process, 2, 4, accumulation=2)]
        assert runs["whole"] == {str(step): rows for step, rows in enumerate(steps)}
        for done in (5, 15):  # of step 15's two rows process 1 has none
            assert runs[f"from-{done}"] == {str(step): steps[step] for step in range(done, len(steps))}
    check_metrics(two, 2)


@pytest.mark.slow
def test_two_processes_train_the_model_of_one_and_resume_to_it(two, alone):
    runs = ("whole-0", "whole-1", "from-5-0", "from-15-0")
    first, second, *resumed = (load_file(two / f"{run}.safetensors") for run in runs)
    for name, tensor in alone.model.state_dict().items():
        assert torch.equal(first[name], second[name])
        torch.testing.assert_close(first[name], tensor, atol=1e-4, rtol=1e-3)
        for other in resumed:
            torch.testing.assert_close(other[name], first[name], atol=1e-6, rtol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("processes", [3, pytest.param(4, marks=pytest.mark.soak)])
def test_more_processes_train_on_and_evaluate_each_row_once(tmp_path, orders, processes):
    """Of the last step's two rows, and of the last evaluation batch, all but one process have none."""
    options = ["per_device_train_batch_size=4", "num_train_epochs=2", "frozen_epochs=1", "dataloader_num_workers=1"]
    run_script(tmp_path, *options, "per_device_eval_batch_size=3", processes=processes)
    for process, runs in enumerate(read(tmp_path, "rows", processes)):
        steps = [rows for order in orders[:2] for rows in own_rows(order, process, processes, 4)]
        assert runs["whole"] == {str(step): rows for step, rows in enumerate(steps)}
    check_metrics(tmp_path, processes)


def check_metrics(folder: Path, processes: int) -> None:
    expected = streamed_trainer(folder / "alone").evaluate()  # the same model, not trained
    assert expected["eval_genre_known_rows"] == EVAL_ROWS
    for metrics in read(folder, "metrics", processes):
        for name, value in expected.items():
            if not name.endswith(("runtime", "per_second", "preparation_time")):
                assert metrics[name] == pytest.approx(value, rel=1e-6), name


def test_a_run_with_and_one_without_streaming_have_other_recipes():
    """A checkpoint is resumed with the recipe that it was made with; streaming decides the order of the rows."""
    recipes = [recipe_of(ModelArguments(), DataArguments("here", streaming=streaming)) for streaming in (False, True)]
    assert [recipe["streaming"] for recipe in recipes] == [False, True]
    assert departures(recipes[0]) == departures(recipes[1])
