"""The model card: its metadata can be read back, its figures are the run's, its code runs, its labels are text."""

import dataclasses
import re

import pytest
import torch
from huggingface_hub import ModelCard
from PIL import Image
from transformers import ViTConfig, ViTImageProcessor

from artgraph_vit import ArtGraphViTConfig, ArtGraphViTForImageClassification, Task
from artgraph_vit.reporting.card import CardOptions, render_card, write_card

from .made import results

HOSTILE = ("<script>alert(1)</script>", "a|b", "`code`", "*bold*", "[link](x)", "{{ 7 * 7 }}", "plain")


def config(labels=("a", "other")) -> ArtGraphViTConfig:
    size = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    return ArtGraphViTConfig(
        backbone_config=ViTConfig(image_size=32, patch_size=8, **size),
        tasks=[
            Task("artist", "single_label_classification", labels, rare="other"),
            Task("tags", "multi_label_classification", ("Tree", "boat"), rare="drop"),
        ],
    )


def test_the_metadata_says_what_the_run_measured():
    options = CardOptions("me/model", "apache-2.0", "ArtGraph", "me/artgraph", "CC0")
    data = ModelCard(render_card(results(), config(), "run", options)).data
    assert (data.license, data.library_name, data.pipeline_tag) == (
        "apache-2.0",
        "transformers",
        "image-classification",
    )
    assert (data.base_model, data.datasets) == ("google/vit-base-patch16-224-in21k", ["me/artgraph"])
    assert set(data.metrics) == {"accuracy", "f1"}
    measured = {result.metric_name: result for result in data.eval_results}
    assert {name: result.metric_value for name, result in measured.items()} == {
        "Average macro F1": 0.586,
        "Macro F1 (artist)": 0.644,
        "Accuracy (artist)": 0.611,
        "Macro F1 (tags)": 0.533,
        "Hamming loss (tags)": 0.0555,
    }
    assert {(r.dataset_name, r.dataset_type, r.dataset_split) for r in measured.values()} == {
        ("ArtGraph", "me/artgraph", "test")
    }


def test_nothing_is_invented():
    recipe = {"backbone": "demo-backbone", "from_scratch": True}
    text = render_card({**results(), "recipe": recipe, "frozen_metrics": None}, config(), "run", CardOptions())
    data = ModelCard(text).data
    assert (data.license, data.base_model, data.datasets) == (None, None, None)
    assert "No licence was chosen" in text
    assert "trained from a random start" in text


def test_each_figure_stands_beside_the_majority_guess():
    text = render_card(results(), config(), "run", CardOptions())
    header, _, artist, tags, average = [line for line in text.splitlines() if line.startswith("|")][:5]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in (header, artist, tags, average)]
    named = [dict(zip(range(len(cells[0])), row, strict=True)) for row in cells]
    assert named[0][3] == "accuracy"
    assert (named[1][3], named[1][5]) == ("0.611", "0.111")
    assert (named[1][8], named[1][9], named[1][10]) == ("**0.644**", "0.111", "0.333")
    assert (named[2][4], named[2][5]) == ("0.0555", "0.1110")
    assert (named[3][8], named[3][9]) == ("**0.586**", "0.078")
    for figure in ("multiclassification_losses.png", "multiclassification_macro_f1s.png"):
        assert f"(figures/{figure})" in text


def test_labels_are_plain_text():
    text = render_card(results(), config(HOSTILE), "run", CardOptions())
    assert "<script>" not in text
    assert "&lt;script&gt;" in text
    assert r"a\|b" in text
    assert r"\`code\`" in text
    assert r"\{\{ 7 \* 7 \}\}" in text
    assert "49" not in text


def test_the_code_in_the_card_runs_as_written(tmp_path, monkeypatch, capsys):
    torch.manual_seed(0)
    ArtGraphViTForImageClassification(config()).save_pretrained(tmp_path / "model")
    ViTImageProcessor(size={"height": 32, "width": 32}).save_pretrained(tmp_path / "model")
    Image.new("RGB", (50, 40), "teal").save(tmp_path / "painting.jpg")
    options = CardOptions(repo_id=str(tmp_path / "model"))
    card = write_card(results(), config(), tmp_path, options).read_text()
    code = re.search(r"```python\n(.*?)```", card, re.S)[1]
    monkeypatch.chdir(tmp_path)
    exec(compile(code, "card", "exec"), {})
    assert re.search(r"\{'artist': \['(a|other)'\], 'tags': \[.*\]\}", capsys.readouterr().out)


def test_options_survive_the_results_file():
    options = CardOptions("me/model", "mit", "ArtGraph")
    assert CardOptions(**dataclasses.asdict(options)) == options


@pytest.mark.parametrize("backbone", ["/data/vit", "vit", "../vit", "./a/b"])
def test_a_folder_is_no_base_model(backbone):
    made = {**results(), "recipe": {"backbone": backbone, "from_scratch": False}}
    assert ModelCard(render_card(made, config(), "run", CardOptions())).data.base_model is None
