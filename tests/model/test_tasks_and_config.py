"""Tasks and config: what is refused, and what survives saving and loading."""

import json
from pathlib import Path

import pytest
from transformers import (
    AutoConfig,
    Dinov2Config,
    ViTConfig,
)

from artgraph_vit import ARTGRAPH_TASKS, ArtGraphViTConfig, Task
from artgraph_vit.model.tasks import MULTI_LABEL, SINGLE_LABEL

ROOT = Path(__file__).parents[2]


# Tasks


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"name": "my task"}, r"Task name 'my task' is not an identifier: use letters, digits and '_' only\."),
        ({"name": ""}, "Task name '' is not an identifier"),
        ({"name": 3}, "Task name 3 is not an identifier"),
        ({"problem_type": "regression"}, "Task 'genre' has problem_type 'regression': use 'single_label_class"),
        ({"rare": "ignore"}, "Task 'genre' has rare='ignore': use 'keep', 'drop' or, for a single-"),
        ({"problem_type": MULTI_LABEL, "rare": "other"}, "Task 'genre' has rare='other'"),
        ({"labels": ("a", 1)}, "Task 'genre' has a label that is not a string"),
        ({"labels": ("a", "b", "a")}, "Task 'genre' has the label 'a' twice"),
    ],
)
def test_a_task_that_cannot_be_meant_is_refused(values, message):
    with pytest.raises(ValueError, match=message):
        Task(**{"name": "genre", "problem_type": SINGLE_LABEL, **values})


@pytest.mark.parametrize("values", [{"name": "genre"}, {"name": "genre", "problem_type": SINGLE_LABEL, "lables": []}])
def test_a_task_in_json_form_needs_the_right_keys(values):
    with pytest.raises(ValueError, match=r"given by the keys name, problem_type, labels, rare \(the first two"):
        Task.from_dict(values)


def test_one_string_is_no_list_of_labels():
    with pytest.raises(ValueError, match="labels"):
        Task("genre", SINGLE_LABEL, "portrait")


def test_a_task_survives_json_and_keeps_case_and_order():
    task = Task("tags", MULTI_LABEL, ("Tree", "tree", "Ñandú", "a"), rare="drop")
    assert Task.from_dict(json.loads(json.dumps(task.to_dict()))) == task
    assert Task.from_dict(task) is task


def test_the_five_artgraph_tasks():
    assert [(t.name, t.is_multi_label, t.rare) for t in ARTGRAPH_TASKS] == [
        ("artist", False, "other"),
        ("style", False, "keep"),
        ("genre", False, "keep"),
        ("tags", True, "drop"),
        ("media", True, "drop"),
    ]


# Config


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"head_dropuot": 0.1}, r"ArtGraphViTConfig has no option 'head_dropuot': did you mean 'head_dropout'\?"),
        ({"threshold": {}}, "no option 'threshold': did you mean 'thresholds'"),
        ({"qqqqqq": 1}, r"no option 'qqqqqq'\.$"),
        ({"tasks": [Task("a", SINGLE_LABEL), Task("a", MULTI_LABEL)]}, "needs a name of its own, got a, a"),
        ({"tasks": [{"name": "a"}]}, "A task is given by the keys"),
        ({"tasks": [Task("a", SINGLE_LABEL, tuple(map(str, range(1_000_001))))]}, "more than 1,000,000 labels"),
        ({"pooling": "max"}, "pooling='max': use one of cls, mean, cls_mean, pooler"),
        ({"multilabel_reduction": "mean"}, "multilabel_reduction='mean': use one of known_rows, all_rows"),
        ({"head_dropout": 1.0}, "head_dropout=1.0: use a probability of at least 0 and below 1"),
        ({"head_dropout": -0.1}, "head_dropout=-0.1"),
        ({"head_dropout": float("nan")}, "head_dropout=nan"),
        ({"loss_epsilon": 1e-5}, "loss_epsilon=1e-05: use a number from 0 to 1e-6"),
        ({"loss_epsilon": -1e-9}, "loss_epsilon=-1e-09"),
        ({"thresholds": {"genre": 0.5}}, "thresholds names 'genre', which is not a multi-label task"),
        ({"thresholds": {"tagz": 0.5}}, "thresholds names 'tagz'"),
        ({"thresholds": {"tags": 1.0}}, r"thresholds\['tags'\] must be one number, or one for each of the 5 labels"),
        ({"thresholds": {"tags": [0.5, 0.5]}}, r"thresholds\['tags'\] must be one number"),
        ({"thresholds": {"tags": "0.5"}}, r"thresholds\['tags'\] must be one number"),
        ({"temperatures": {"tagz": 1.0}}, "temperatures names 'tagz', which is not a task"),
        ({"temperatures": {"tags": 0.0}}, r"temperatures\['tags'\] must be a number above 0"),
        ({"logit_offsets": {"tags": [0.0] * 5}}, "logit_offsets names 'tags', which is not a single-label task"),
        ({"logit_offsets": {"genre": [0.0]}}, r"logit_offsets\['genre'\] must be 3 numbers, one for each label"),
        ({"logit_offsets": {"genre": [0.0, float("nan"), 0]}}, r"logit_offsets\['genre'\] must be 3 numbers"),
        (
            {"task_weighting": "gradnorm"},
            "task_weighting='gradnorm': use one of uncertainty, uncertainty_liebel, soft",
        ),
        ({"max_task_weight": 0}, "max_task_weight=0: use a number above 0, or leave it out"),
        ({"max_task_weight": -1.0}, "max_task_weight=-1.0"),
        ({"task_weights": {"genre": 1.0}}, "task_weights are for task_weighting='fixed', not for 'uncertainty'"),
        ({"task_weighting": "fixed"}, "needs task_weights, one for each of artist, genre, tags; got None"),
        (
            {"task_weighting": "fixed", "task_weights": {"genre": 1.0}},
            "one for each of artist, genre, tags; got {'genre",
        ),
        (
            {"task_weighting": "fixed", "task_weights": {"artist": -1, "genre": 1, "tags": 1}},
            "use numbers of at least 0",
        ),
        ({"task_weighting_temperature": 0.0}, "task_weighting_temperature=0.0: use a number above 0"),
        ({"multilabel_loss": "focal"}, "multilabel_loss='focal': use one of bce, asymmetric"),
        ({"asymmetric_gamma_negative": 0.5}, "asymmetric_gamma_negative=0.5: use 0, or a number of at least 1"),
        ({"asymmetric_margin": 1.0}, "asymmetric_margin=1.0: use a number of at least 0 and below 1"),
        ({"max_positive_weight": 0.5}, "max_positive_weight=0.5: use a number of at least 1"),
        ({"label_smoothing": 1.0}, "label_smoothing=1.0: use a number of at least 0 and below 1"),
        ({"logit_adjustment": float("nan")}, "logit_adjustment=nan: use a number of at least 0"),
        ({"asymmetric_margin": 0.1}, "asymmetric_margin=0.1 does nothing with multilabel_loss='bce', only with asym"),
        ({"task_weighting_temperature": 2.0}, "does nothing with task_weighting='uncertainty', only with soft_uncert"),
        (
            {"loss_epsilon": 0.0, "task_weighting": "equal"},
            "loss_epsilon=0.0 does nothing with task_weighting='equal'",
        ),
        (
            {"task_weighting": "equal", "max_task_weight": 2.0},
            "max_task_weight=2.0 does nothing with task_weighting='equal', only with uncertainty or uncertainty_lieb",
        ),
        ({"image_size": 0}, "image_size=0: use an integer from 1 to 4,096"),
        ({"image_size": 100_000}, "image_size=100000: use an integer from 1 to 4,096"),
    ],
)
def test_a_config_that_cannot_be_meant_is_refused(tasks, options, message):
    with pytest.raises(ValueError, match=message):
        ArtGraphViTConfig(**{"tasks": tasks, **options})


def test_a_number_given_as_text_is_refused_by_name(tasks):
    with pytest.raises(ValueError, match="loss_epsilon"):
        ArtGraphViTConfig(tasks=tasks, loss_epsilon="1e-8")


def test_a_config_survives_saving_and_loading(tmp_path, tiny):
    config = ArtGraphViTConfig(
        backbone_config=Dinov2Config(**tiny),
        tasks=[
            Task("tags", MULTI_LABEL, ("Tree", "Ñandú"), rare="drop"),
            {"name": "genre", "problem_type": SINGLE_LABEL},
        ],
        pooling="mean",
        head_dropout=0.25,
        loss_epsilon=0.0,
        multilabel_reduction="all_rows",
        thresholds={"tags": [0.3, 0.4]},
    )
    config.save_pretrained(tmp_path)
    for loaded in (ArtGraphViTConfig.from_pretrained(tmp_path), AutoConfig.from_pretrained(tmp_path)):
        assert type(loaded) is ArtGraphViTConfig
        assert loaded.tasks == config.tasks
        assert loaded.backbone_config.to_dict() == config.backbone_config.to_dict()
        assert (loaded.pooling, loaded.head_dropout, loaded.loss_epsilon) == ("mean", 0.25, 0.0)
        assert (loaded.multilabel_reduction, loaded.thresholds) == ("all_rows", {"tags": [0.3, 0.4]})


def test_a_misspelt_option_in_a_saved_config_is_found(tmp_path, tasks):
    ArtGraphViTConfig(tasks=tasks).save_pretrained(tmp_path)
    values = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**values, "multilabel_reductoin": "all_rows"}))
    with pytest.raises(ValueError, match="did you mean 'multilabel_reduction'"):
        ArtGraphViTConfig.from_pretrained(tmp_path)


def test_the_default_backbone_is_vit_base_and_the_defaults_are_documented_ones():
    config = ArtGraphViTConfig()
    assert config.backbone_config.to_dict() == ViTConfig().to_dict()
    assert (config.hidden_size, config.tasks, config.pooling, config.thresholds) == (768, [], "cls", {})
    assert (config.head_dropout, config.loss_epsilon, config.multilabel_reduction) == (0.3, 1e-8, "known_rows")


@pytest.mark.parametrize("name", ["type", "keys", "values", "training"])
def test_a_name_that_pytorch_needs_is_refused_at_once(name):
    with pytest.raises(ValueError, match=f"cannot be called '{name}'"):
        Task(name, SINGLE_LABEL, ("a", "b"))


def test_a_task_given_by_its_name_alone_is_refused():
    with pytest.raises(
        ValueError, match="A task is given as a dict with name, problem_type and labels, not as 'artist'"
    ):
        Task.from_dict("artist")
