"""The model card: its metadata can be read back, its figures are the run's, its code runs, all else is text."""

import json
import re

import pytest
import torch
import yaml
from huggingface_hub import ModelCard
from huggingface_hub.repocard_data import model_index_to_eval_results
from PIL import Image
from transformers import ViTConfig, ViTImageProcessor

from artgraph_vit import ArtGraphViTConfig, ArtGraphViTForImageClassification, Task
from artgraph_vit.evaluation.results import Results
from artgraph_vit.publishing.card import FIGURES, CardOptions, escape, render_card, write_card
from artgraph_vit.training.options import parse_options
from tests.evaluation.made import results
from tests.hub_server import card_errors


def config(labels=("a", "other"), names=("artist", "tags"), **options) -> ArtGraphViTConfig:
    size = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    return ArtGraphViTConfig(
        backbone_config=ViTConfig(image_size=32, patch_size=8, **size),
        tasks=[
            Task(names[0], "single_label_classification", labels, rare="other"),
            Task(names[1], "multi_label_classification", ("Tree", "boat", "sea"), rare="drop"),
        ],
        **options,
    )


def rendered(*, options: CardOptions | None = None, labels=("a", "other"), **changed) -> str:
    """The card of the made results, of which `changed` are entries."""
    return render_card(results(**changed), config(labels), "run", options or CardOptions())


def metadata(card: str) -> dict:
    return yaml.safe_load(card.removeprefix("---\n").split("\n---\n")[0])


def test_the_metadata_says_what_the_run_measured():
    options = CardOptions("me/model", "apache-2.0", "ArtGraph", "me/artgraph", "CC0", ["en", "it"])
    data = ModelCard(rendered(options=options)).data
    assert (data.license, data.language, data.library_name, data.pipeline_tag) == (
        *("apache-2.0", ["en", "it"], "transformers", "image-classification"),
    )
    assert (data.base_model, data.datasets) == ("google/vit-base-patch16-224-in21k", ["me/artgraph"])
    assert set(data.metrics) == {
        *("accuracy", "f1", "hamming_loss", "precision", "recall"),
        *("balanced_accuracy", "mean_average_precision", "top_5_accuracy"),
    }
    measured = {result.metric_name: result for result in data.eval_results}
    assert len(measured) == 13
    values = {"Average macro F1": 0.586, "Top-5 accuracy (artist)": 0.866, "Macro recall (artist)": 0.633}
    values |= {"Hamming loss (tags)": 0.0555, "Mean average precision (tags)": 0.544, "Micro F1 (tags)": 0.577}
    assert {name: measured[name].metric_value for name in values} == values
    averages = {name: r.metric_args["average"] for name, r in measured.items() if r.metric_type in ("f1", "recall")}
    assert averages.pop("Micro F1 (tags)") == "micro"
    assert set(averages.values()) == {"macro"}


def test_the_model_index_is_the_hubs():
    data = results().data | {"source": "someone/art", "config": "small", "revision": "abc"}
    card = rendered(data=data)
    assert card_errors(card) == []
    (model,) = metadata(card)["model-index"]
    (result,) = model["results"]
    named = {"name": "artworks", "type": "someone/art", "config": "small", "split": "test", "revision": "abc"}
    assert (model["name"], result["dataset"], metadata(card)["datasets"]) == ("run", named, ["someone/art"])
    name, entries = model_index_to_eval_results(metadata(card)["model-index"])
    assert (name, len(entries)) == ("run", 13)
    assert str(ModelCard(card)) == card


def test_nothing_is_invented():
    for backbone in ("/data/vit", "vit", "../vit", "./a/b"):  # a folder is no base model
        assert ModelCard(rendered(recipe={"backbone": backbone, "from_scratch": False})).data.base_model is None
    recipe = {"backbone": "demo-backbone", "from_scratch": True}
    text = rendered(recipe=recipe, frozen_metrics=None)
    data = ModelCard(text).data
    assert (data.license, data.language, data.base_model, data.datasets) == (None, None, None, None)
    assert "No licence was chosen" in text
    assert "Their language" not in text
    assert "trained from a random start" in text
    assert "bins of 0.01 of the logit" in rendered()
    without = {name: value for name, value in results().metrics.items() if "average_precision" not in name}
    assert "bins of" not in rendered(metrics=without)


def test_a_licence_of_ones_own_has_a_name_and_a_link():
    options = CardOptions(license="other", license_name="My *own*", license_link="https://example.org/licence")
    assert CardOptions(license="other").missing() == ["license_name", "license_link", "language"]
    card = rendered(options=options)
    assert {name: value for name, value in metadata(card).items() if "license" in name} == {
        **{"license": "other", "license_name": "My *own*", "license_link": "https://example.org/licence"}
    }
    assert r"published under [My \*own\*](https://example.org/licence)." in card


@pytest.mark.parametrize(
    ("option", "value"),
    [
        *[("license", value) for value in ("Apache 2.0", "mit\n- x", "<b>")],
        *[("license_link", value) for value in ("javascript:alert(1)", "../x", "https://a)b")],
        *[("language", value) for value in ("English", "en-US", ["en", "e"])],
    ],
)
def test_what_the_hub_would_not_read_is_refused(option, value):
    with pytest.raises(ValueError, match=rf"{option}='.*': give a"):
        CardOptions(**{option: value})
    for given in (["en", "it"], ["en,it"], ["en, it"]):
        assert parse_options([CardOptions], ["--language", *given])[0].language == ["en", "it"]


def test_each_figure_stands_beside_the_majority_guess():
    text = rendered()
    header, _, artist, tags, average = [line for line in text.splitlines() if line.startswith("|")][:5]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in (header, artist, tags, average)]
    named = [dict(zip(range(len(cells[0])), row, strict=True)) for row in cells]
    assert named[0][3] == "accuracy"
    assert (named[1][3], named[1][5]) == ("0.611", "0.111")
    assert (named[1][8], named[1][9], named[1][10]) == ("**0.644**", "0.111", "0.333")
    assert (named[2][4], named[2][5]) == ("0.0555", "0.1110")
    assert (named[3][8], named[3][9]) == ("**0.586**", "0.078")


def test_figures_are_shown_that_are_there(tmp_path):
    first, second = FIGURES
    (tmp_path / "figures").mkdir()
    (tmp_path / first).touch()
    for task in ("artist", "other"):  # of which the model has the first
        (tmp_path / "figures" / f"confusion_{task}.png").touch()
    text = write_card(results(card={"license": "mit", "gone": 1}), config(), tmp_path).read_text()
    assert f"]({first})" in text
    assert second not in text
    assert "![What each artist is taken for](figures/confusion_artist.png)" in text
    assert "confusion_other" not in text
    assert "published under mit." in text
    assert all(f"]({path})" in rendered() for path in FIGURES)


@pytest.mark.parametrize(
    ("thresholds", "shown"),
    [
        ({}, "0.5, as none was set"),
        ({"tags": 0.25}, "0.25"),
        ({"tags": [0.3]}, "0.3"),
        ({"tags": [0.125, 0.5, 0.25]}, "one for each label, from 0.125 to 0.5"),
    ],
)
def test_thresholds_are_named(thresholds, shown):
    text = render_card(results(), config(thresholds=thresholds), "run", CardOptions())
    assert f"| tags | {shown} |" in text
    assert ("rarely the best" in text) == (not thresholds)


@pytest.mark.parametrize(
    ("text", "plain"),
    [
        ("num_train_epochs", "num_train_epochs"),
        ("_a_ __b__", r"\_a\_ \_\_b\_\_"),
        ("- a", r"\- a"),
        ("1. a", r"1\. a"),
        ("---", r"\---"),
        ("2.13.0", "2.13.0"),
        ("-0.5", "-0.5"),
        ("1890-1900", "1890-1900"),
        ("a\n\n# b\r---", r"a \# b ---"),
        ("$x$ ~y~ \\", r"\$x\$ \~y\~ " + "\\\\"),
        ("<b>a|b `c` {{ 7 * 7 }} [d](e)", r"&lt;b&gt;a\|b \`c\` \{\{ 7 \* 7 \}\} \[d\](e)"),
    ],
)
def test_what_means_something_in_markdown_is_escaped(text, plain):
    assert escape(text) == plain


def test_names_from_outside_break_neither_metadata_nor_text():
    hostile = 'x: {y}\n---\n<script>alert("&")</script> | {{ 7 * 7 }} `'
    changed = {"recipe": {"backbone": hostile, hostile: hostile, "tasks": ["a|b"]}, "split": hostile}
    changed |= {"versions": {hostile: hostile}, "data": results().data | {"source": hostile}}
    given = dict.fromkeys(("repo_id", "dataset_name", "dataset_id", "data_license", "license_name"), hostile)
    card = rendered(options=CardOptions(license="other", **given), labels=(hostile, "other"), **changed)
    plain = " ".join(hostile.split())
    data = metadata(card)
    assert data["datasets"] == [plain]
    assert data["model-index"][0]["name"] == plain
    assert data["model-index"][0]["results"][0]["dataset"]["name"] == plain
    assert card_errors(card) == []
    body = re.sub(r"```python.*?```", "", card.split("\n---\n", 1)[1], flags=re.S)
    assert "<script" not in body
    assert "49" not in body.replace("1,749", "")
    assert "\n---\n" not in body
    rows = [line for line in body.splitlines() if line.startswith(("| x", "| tasks"))]
    assert len(rows) == 2
    assert all(len(re.findall(r"(?<!\\)\|", row)) == 3 for row in rows)
    for code in re.findall(r"```python\n(.*?)```", card, re.S):
        compile(code, "card", "exec")


def test_the_snippets_of_the_card_run_as_written(tmp_path, monkeypatch, capsys):
    """Also where the model lies in a folder of an odd name, and where no task is called artist."""
    torch.manual_seed(0)
    folder, tasks = tmp_path / 'it\'s "a" \\model', config(names=("maker", "subjects"))
    ArtGraphViTForImageClassification(tasks).save_pretrained(folder)
    ViTImageProcessor(size={"height": 32, "width": 32}).save_pretrained(folder)
    Image.new("RGB", (50, 40), "teal").save(tmp_path / "painting.jpg")
    made = json.loads(json.dumps(vars(results())).replace("artist", "maker").replace("tags", "subjects"))
    card = render_card(Results(**made), tasks, "run", CardOptions(repo_id=str(folder)))
    snippets = re.findall(r"```python\n(.*?)```", card, re.S)
    assert len(snippets) == 3
    monkeypatch.chdir(tmp_path)
    for code in snippets:
        exec(compile(code, "card", "exec"), {})
    described, listed, labels = capsys.readouterr().out.splitlines()
    assert re.match(r"\[\{'label': '(a|other)', 'score': 0\.\d+\}, .*\] \w+", described), described
    assert re.fullmatch(r"\[\{'label': '(a|other)', 'score': 0\.\d+\}, \{.*\}\]", listed), listed
    assert re.fullmatch(r"\{'maker': \['(a|other)'\], 'subjects': \[.*\]\} torch.Size\(\[1, 32\]\)", labels), labels


def test_the_card_says_which_recipe_made_the_checkpoint():
    options = CardOptions(recipe_name="artgraph-strong *or so*")
    departs = {"class_weights": "sqrt", "mixup_alpha": 0.2, "tune_thresholds": True}
    text = rendered(options=options, departures=departs)
    assert r"From the recipe artgraph-strong \*or so\*. The options differ from those of the published" in text
    assert "by learned uncertainties" in text
    assert "by the rule `equal`." in render_card(results(), config(task_weighting="equal"), "run", CardOptions())
    assert "`class_weights` sqrt, `mixup_alpha` 0.2, `tune_thresholds` True." in text
    assert "By the recipe of the published ArtGraph model." not in text

    text = rendered(departures={})
    assert "By the recipe of the published ArtGraph model." in text
    assert "differ from" not in text


@pytest.mark.parametrize(
    ("epochs", "frozen_epochs", "said"),
    [
        (4, 1, "In two phases: 1 epoch in which only the heads learn, then the whole model up to epoch 4."),
        (0.0882, 0.0882, "Only the heads learned, for 0.0882 epochs: the backbone is as it was."),
        (1.0, 1, "Only the heads learned, for 1 epoch: the backbone is as it was."),
        (2.5, 0, "The whole model learned from the start, up to epoch 2.5."),
    ],
)
def test_the_card_says_what_was_trained(epochs, frozen_epochs, said):
    text = rendered(epochs=epochs, frozen_epochs=frozen_epochs)
    assert f"\n{said} On 4,000 artworks" in text
