"""The recipe study: it runs, goes on where it stopped, and its table says what its runs say."""

import json
import os
import re
import runpy
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

ROOT = Path(__file__).parents[1]
SOURCE, STRONG = "source recipe", "strong recipe"


def study(folder: Path, *options: str) -> subprocess.CompletedProcess:
    call = [sys.executable, ROOT / "benchmarks" / "recipe_study.py", "--quick", "--study_folder", folder, *options]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run([*map(str, call)], capture_output=True, text=True, cwd=ROOT, env=environment, check=False)


ALONE = ("--seeds", "2", "--recipe_seeds", "2", "--only", "random flips")


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    folder = tmp_path_factory.mktemp("study")
    process = study(folder / "runs", *ALONE, "--out", str(folder / "table.md"), "--plot", str(folder / "plot.png"))
    assert process.returncode == 0, process.stderr[-3000:]
    return folder, process


def runs_of(folder: Path, name: str) -> list[dict]:
    paths = sorted((folder / "runs" / "runs").glob(f"{name.replace(' ', '-')}-*.json"))
    return [json.loads(path.read_text()) for path in paths]


def rows_of(table: str) -> dict[str, list[str]]:
    lines = [line for line in table.splitlines() if line.startswith("| ")]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    return {row[0]: row[1:] for row in cells[2:]}


@pytest.mark.soak
def test_every_recipe_has_its_seeds_and_the_same_ground(done):
    folder, _ = done
    words = {name: runs_of(folder, name) for name in (SOURCE, STRONG, "random flips")}
    assert [len(runs) for runs in words.values()] == [2, 2, 2]
    for name, runs in words.items():
        for seed, (run, source) in enumerate(zip(runs, words[SOURCE], strict=True)):
            assert f"--seed={seed}" in run["options"]
            departs = set(run["options"]) - set(source["options"])
            same = {word.split("=")[0] for word in departs}
            assert same.isdisjoint({"--num_train_epochs", "--source", "--embedded_artworks", "--backbone"})
            assert bool(departs) == (name != SOURCE)
    assert "--horizontal_flip=True" in words["random flips"][0]["options"]


@pytest.mark.soak
def test_the_table_says_what_the_runs_say(done):
    folder, process = done
    table = (folder / "table.md").read_text()
    assert process.stdout.endswith(table)
    rows = rows_of(table)
    source = np.array([run["at_half"]["avg_macro_f1"] for run in runs_of(folder, SOURCE)])
    for name in (SOURCE, STRONG, "random flips"):
        for kind, score_cell, gain_cell in (("at_half", 2, 3), ("tuned", 4, 5)):
            scores = np.array([run[kind]["avg_macro_f1"] for run in runs_of(folder, name)])
            assert rows[name][score_cell].startswith(f"{scores.mean():.3f} ± ")
            if name == SOURCE and kind == "at_half":
                assert rows[name][gain_cell] == ""
                continue
            paired = stats.ttest_rel(scores, source).confidence_interval(0.95)
            gain, half = (float(number) for number in re.findall(r"[-+]?\d+\.\d+", rows[name][gain_cell]))
            assert [gain - half, gain + half] == pytest.approx([paired.low, paired.high], abs=2e-3)
            assert rows[name][gain_cell].startswith("**") == (paired.low > 0 or paired.high < 0)
    assert (folder / "plot.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.soak
def test_what_is_done_is_not_done_again_and_gives_the_same(done):
    folder, _ = done
    kept = folder / "runs" / "runs" / "random-flips-1.json"
    before = json.loads(kept.read_text())
    kept.unlink()
    process = study(folder / "runs", *ALONE, "--out", str(folder / "again.md"))
    assert process.returncode == 0, process.stderr[-3000:]
    assert re.findall(r"^\[\d+/\d+\] (.*): ", process.stdout, re.MULTILINE) == ["random flips, seed 1"]
    assert json.loads(kept.read_text()) == before
    assert (folder / "again.md").read_text() == (folder / "table.md").read_text()


@pytest.mark.soak
def test_runs_with_other_options_are_refused(done):
    folder, _ = done
    process = study(folder / "runs", *ALONE, "--learning_rate", "1e-4")
    assert process.returncode != 0
    assert "is of a run with other options: delete it, or choose another --study_folder" in process.stderr


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--only", "magic"), "only names 'magic'; the options are"),
        (("--seeds", "1"), "an interval needs at least 2 seeds"),
        (("--learning_rats", "1"), "there is no option '--learning_rats': did you mean --learning_rate?"),
    ],
)
def test_wrong_options(tmp_path, monkeypatch, capsys, options, message):
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    monkeypatch.setattr(sys, "argv", ["recipe_study.py", "--study_folder", str(tmp_path), "--source", "x", *options])
    with pytest.raises(SystemExit) as stopped:
        runpy.run_path(str(ROOT / "benchmarks" / "recipe_study.py"), run_name="__main__")
    assert stopped.value.code == 2
    assert message in capsys.readouterr().err
