"""What a person sees while training, and what trackers get."""

import re

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from artgraph_vit.training import progress

from .tiny import TASKS, tiny_trainer


def test_the_bar_the_table_of_each_epoch_and_tensorboard(tmp_path, capfd, monkeypatch):
    monkeypatch.setattr(progress, "SECONDS_BETWEEN_LOSSES", 0.0)
    monkeypatch.setenv("TENSORBOARD_LOGGING_DIR", str(tmp_path / "events"))
    trainer = tiny_trainer(tmp_path, disable_tqdm=False, report_to=["tensorboard"])
    trainer.train()
    out, error = capfd.readouterr()
    shown = (out + error).replace("\r", "\n")
    bars = [line for line in shown.splitlines() if "phase" in line]
    for epoch in range(1, 5):
        own = [bar for bar in bars if f"phase {'heads' if epoch < 3 else 'full'}, epoch {epoch}/4" in bar]
        assert any(re.search(r"row/s, artist=[\d.]+, genre=[\d.]+, tags=[\d.]+\]", bar) for bar in own), own
        table = re.search(rf"^epoch {epoch} +train loss +val loss +val F1 +weight\n((?:  .*\n)+)", shown, re.MULTILINE)
        assert table is not None
        lines = table.group(1).splitlines()
        for task, line in zip(TASKS, lines, strict=False):
            assert re.fullmatch(rf"  {task.name} +\d+\.\d{{4}} +\d+\.\d{{4}} +[01]\.\d{{3}} +\d\.\d{{3}}", line)
        assert re.fullmatch(r"  total / average +\d+\.\d{4} +\d+\.\d{4} +[01]\.\d{3}", lines[len(TASKS)])
    assert re.search(r" 256/256 \[", bars[-1])  # 16 steps of 16 rows
    assert "{'loss'" not in shown

    events = EventAccumulator(str(tmp_path / "events"))
    events.Reload()
    tags = set(events.Tags()["scalars"])
    for task in TASKS:
        assert {f"train/{task.name}_loss", f"train/{task.name}_weight", f"eval/{task.name}_macro_f1"} <= tags
    assert "eval/avg_macro_f1" in tags
    logged = [log["artist_loss"] for log in trainer.state.log_history if "artist_loss" in log]
    scalars = events.Scalars("train/artist_loss")
    assert [event.step for event in scalars] == [4, 8, 12, 16]
    assert all(abs(event.value - value) < 1e-6 for event, value in zip(scalars, logged, strict=True))
