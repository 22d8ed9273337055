"""Tasks and config: what is refused, what is an option of training, and what survives saving and loading."""

import dataclasses
import json

import pytest
from transformers import AutoConfig, CLIPConfig, Dinov2Config, SiglipConfig, ViTConfig

from artgraph_vit import ARTGRAPH_TASKS, ArtGraphViTConfig, Task
from artgraph_vit.model.backbones import refuse_unsuitable
from artgraph_vit.model.configuration_artgraph_vit import load_backbone_config
from artgraph_vit.model.tasks import MULTI_LABEL, SINGLE_LABEL

NAN = float("nan")

# Tasks


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"name": "my task"}, r"Task name 'my task' is not an identifier: use letters, digits and '_' only\."),
        ({"name": ""}, "Task name '' is not an identifier"),
        ({"name": 3}, "Task name 3 is not an identifier"),
        *(({"name": name}, f"cannot be called '{name}'") for name in ("type", "keys", "values", "training")),
        ({"problem_type": "regression"}, "Task 'genre' has problem_type 'regression': use 'single_label_class"),
        ({"rare": "ignore"}, "Task 'genre' has rare='ignore': use 'keep', 'drop' or, for a single-"),
        ({"problem_type": MULTI_LABEL, "rare": "other"}, "Task 'genre' has rare='other'"),
        ({"labels": ("a", 1)}, "Task 'genre' has a label that is not a string"),
        ({"labels": ("a", "b", "a")}, "Task 'genre' has the label 'a' twice"),
        ({"labels": "portrait"}, "Task 'genre' has labels='portrait': give a list of labels"),
        ({"labels": None}, "Task 'genre' has labels=None: give a list of labels"),
        ({"lables": []}, r"dict with the keys name, problem_type, labels, rare \(the first two are needed\), not as"),
    ],
)
def test_a_task_that_cannot_be_meant_is_refused(values, message):
    with pytest.raises(ValueError, match=message):
        Task.from_dict({"name": "genre", "problem_type": SINGLE_LABEL, **values})


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
        ({"num_labels": 3}, "no option 'num_labels'"),
        ({"id2label": {"0": "a", "1": "b"}}, "id2label is no option here: give the labels of each task in tasks"),
        ({"tasks": [Task("a", SINGLE_LABEL), Task("a", MULTI_LABEL)]}, "needs a name of its own, got a, a"),
        ({"tasks": [{"name": "a"}]}, "A task is given as a dict"),
        ({"tasks": {"genre": {}}}, "A task is given as a dict .* not as genre"),
        ({"pooling": "max"}, "pooling='max': use one of cls, mean, cls_mean, pooler"),
        ({"pooling": ["cls"]}, r"pooling=\['cls'\]: use one of"),
        ({"multilabel_reduction": "mean"}, "multilabel_reduction='mean': use one of known_rows, all_rows"),
        ({"image_size": 0}, "image_size=0: use a whole number of pixels"),
        ({"image_size": 32.0}, "image_size=32.0: use a whole number of pixels"),
        *(
            ({name: value}, f"{name}=.*: use a number of at least 0 and below 1")
            for name in ("head_dropout", "label_smoothing")
            for value in (1.0, -0.1, NAN, True, "0.1", [0.1])
        ),
        ({"loss_epsilon": 1e-5}, "loss_epsilon=1e-05: use a number from 0 to 1e-6"),
        ({"loss_epsilon": -1e-9}, "loss_epsilon=-1e-09"),
        ({"loss_epsilon": "1e-8"}, "loss_epsilon='1e-8'"),
        ({"max_positive_weight": 0.5}, "max_positive_weight=0.5: use a number of at least 1"),
        ({"max_positive_weight": float("inf")}, "max_positive_weight=inf"),
        (
            {"max_positive_weight": 2.0, "tasks": [Task("a", SINGLE_LABEL)]},
            "is for multi-label tasks, and there is none",
        ),
        ({"task_weighting": "gradnorm"}, "task_weighting='gradnorm': use one of uncertainty, equal, fixed"),
        ({"task_weights": {"genre": 1.0}}, "task_weights are for task_weighting='fixed', not for 'uncertainty'"),
        ({"task_weighting": "fixed"}, "needs task_weights, one for each of artist, genre, tags; got None"),
        (
            {"task_weighting": "fixed", "task_weights": {"genre": 1}},
            "one for each of artist, genre, tags; got {'genre",
        ),
        (
            {"task_weighting": "fixed", "task_weights": {"artist": -1, "genre": 1, "tags": 1}},
            "use numbers of at least 0",
        ),
        ({"thresholds": [0.5]}, r"thresholds=\[0.5\]: use a dict with those of each task"),
        ({"temperatures": 2.0}, "temperatures=2.0: use a dict"),
        ({"thresholds": {"genre": 0.5}}, "thresholds names 'genre', which is not a multi-label task"),
        ({"thresholds": {"tagz": 0.5}}, "thresholds names 'tagz'"),
        *(
            ({"thresholds": {"tags": value}}, r"thresholds\['tags'\] must be one number, or one for each of the 5 lab")
            for value in (1.0, 0, [0.5, 0.5], "0.5", NAN)
        ),
        ({"temperatures": {"tagz": 1.0}}, "temperatures names 'tagz', which is not a task"),
        *(
            ({"temperatures": {"tags": value}}, r"temperatures\['tags'\] must be a number above 0")
            for value in (0.0, -1.0, NAN, True)
        ),
        ({"backbone_config": "google/vit-base-patch16-224"}, "give a dict, or a config of transformers"),
        ({"backbone_config": {"hidden_size": None}}, "The config of the backbone 'vit' cannot be used"),
        ({"backbone_config": {"qkv_bias": "yes"}}, "The config of the backbone 'vit' cannot be used"),
    ],
)
def test_a_config_that_cannot_be_meant_is_refused_in_one_sentence(tasks, options, message, tmp_path):
    with pytest.raises(ValueError, match=message) as caught:
        ArtGraphViTConfig(**{"tasks": tasks, **options})
    assert "\n" not in str(caught.value)
    ArtGraphViTConfig(tasks=tasks).save_pretrained(tmp_path)
    # Beside a saved config a backbone is transformers' affair, and an unknown name is the model's.
    if options.keys() <= {known.name for known in dataclasses.fields(ArtGraphViTConfig)} - {"backbone_config"}:
        with pytest.raises(ValueError, match=message):
            ArtGraphViTConfig.from_pretrained(tmp_path, **options)


def test_a_misspelt_option_in_a_saved_config_is_found(tmp_path, tasks):
    ArtGraphViTConfig(tasks=tasks).save_pretrained(tmp_path)
    values = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**values, "multilabel_reductoin": "all_rows"}))
    with pytest.raises(ValueError, match="did you mean 'multilabel_reduction'"):
        ArtGraphViTConfig.from_pretrained(tmp_path)


# What a config.json of version 0.1 holds where nothing else was chosen.
OLD = {
    "asymmetric_gamma_negative": 4.0,
    "asymmetric_gamma_positive": 1.0,
    "asymmetric_margin": 0.05,
    "logit_adjustment": 0.0,
    "logit_offsets": {},
    "max_task_weight": None,
    "multilabel_loss": "bce",
    "task_weighting_temperature": 1.0,
}


def test_options_of_version_0_1_at_their_defaults_are_passed_over(tmp_path, tasks):
    ArtGraphViTConfig(tasks=tasks, pooling="mean").save_pretrained(tmp_path)
    values = json.loads((tmp_path / "config.json").read_text())
    assert not OLD.keys() & values.keys()
    (tmp_path / "config.json").write_text(json.dumps({**values, **OLD}))
    loaded = ArtGraphViTConfig.from_pretrained(tmp_path)
    assert (loaded.pooling, loaded.tasks) == ("mean", tasks)
    assert not OLD.keys() & loaded.to_dict().keys()


@pytest.mark.parametrize(
    ("options", "advice"),
    [
        ({"multilabel_loss": "asymmetric", "asymmetric_margin": 0.1}, "take it out of config.json and the model"),
        ({"logit_adjustment": 1.0}, "it served training only"),
        ({"max_task_weight": 5.0}, "predicts as before"),
        ({"task_weighting": "soft_uncertainty", "task_weighting_temperature": 10.0}, "it served training only"),
        ({"task_weighting": "log"}, "take it out of config.json"),
        (
            {"logit_offsets": {"genre": [0.0, 1.0, 0.0]}},
            r"add its numbers to the biases of the heads \(heads.TASK.bias",
        ),
    ],
)
def test_options_of_version_0_1_that_were_used_are_refused_with_what_to_do(options, advice, tmp_path, tasks):
    values = {"model_type": "artgraph_vit", "tasks": [task.to_dict() for task in tasks], **OLD, **options}
    (tmp_path / "config.json").write_text(json.dumps(values))
    with pytest.raises(ValueError, match=f"^{min(options)}=.* is gone since version 0.2.0: .*{advice}") as caught:
        ArtGraphViTConfig.from_pretrained(tmp_path)
    assert "\n" not in str(caught.value)


def test_a_config_survives_saving_and_loading(tmp_path, tiny):
    options = {
        "pooling": "mean",
        "head_dropout": 0.25,
        "loss_epsilon": 0.0,
        "multilabel_reduction": "all_rows",
        "thresholds": {"tags": [0.3, 0.4]},
        "temperatures": {"genre": 1.5},
        "tuning": {"split": "validation"},
    }
    tasks = [Task("tags", MULTI_LABEL, ("Tree", "Ñandú"), rare="drop"), Task("genre", SINGLE_LABEL)]
    backbone = Dinov2Config(**tiny)
    config = ArtGraphViTConfig(backbone_config=backbone, tasks=[tasks[0], tasks[1].to_dict()], **options)
    config.save_pretrained(tmp_path)
    again = ArtGraphViTConfig(**json.loads(json.dumps(config.to_dict())))
    for loaded in (ArtGraphViTConfig.from_pretrained(tmp_path), AutoConfig.from_pretrained(tmp_path), again):
        assert type(loaded) is ArtGraphViTConfig
        assert loaded.tasks == tasks
        assert loaded.backbone_config.to_dict() == backbone.to_dict()
        assert {name: getattr(loaded, name) for name in options} == options


def test_of_a_backbone_given_beside_a_saved_config_only_what_is_given_changes(tmp_path, tiny, tasks):
    ArtGraphViTConfig(tasks=tasks, backbone_config=ViTConfig(**tiny)).save_pretrained(tmp_path)
    loaded = ArtGraphViTConfig.from_pretrained(tmp_path, head_dropout=0.1, backbone_config={"qkv_bias": False})
    assert (loaded.head_dropout, loaded.backbone_config.qkv_bias, loaded.hidden_size) == (0.1, False, 16)
    assert loaded.tasks == tasks


def test_the_default_backbone_is_vit_base_and_the_defaults_are_documented_ones():
    config = ArtGraphViTConfig()
    assert config.backbone_config.to_dict() == ViTConfig().to_dict()
    assert (config.hidden_size, config.tasks, config.pooling, config.thresholds) == (768, [], "cls", {})
    assert (config.head_dropout, config.loss_epsilon, config.multilabel_reduction) == (0.3, 1e-8, "known_rows")
    assert (config.task_weighting, config.max_positive_weight, config.label_smoothing) == ("uncertainty", 1.0, 0.0)


def test_fields_with_a_help_are_the_options_of_training():
    """The command line is built of them, so their help must survive what transformers makes of a config."""
    options = {known.name: known.metadata for known in dataclasses.fields(ArtGraphViTConfig) if known.metadata}
    assert list(options) == [
        *("pooling", "image_size", "head_dropout", "loss_epsilon", "task_weighting", "task_weights"),
        *("multilabel_reduction", "max_positive_weight", "label_smoothing"),
    ]
    assert all(about["help"] for about in options.values())
    assert {name: about["choices"] for name, about in options.items() if "choices" in about} == {
        "pooling": ("cls", "mean", "cls_mean", "pooler"),
        "task_weighting": ("uncertainty", "equal", "fixed"),
        "multilabel_reduction": ("known_rows", "all_rows"),
    }


# Backbones


@pytest.mark.parametrize("config_class", [CLIPConfig, SiglipConfig])
def test_of_an_image_text_model_the_vision_tower_is_read(config_class, tmp_path):
    config_class().save_pretrained(tmp_path)
    assert type(load_backbone_config(tmp_path)) is type(config_class().vision_config)


@pytest.mark.parametrize(
    ("model_type", "message"),
    [
        ("bert", "'bert' takes input_ids, not pictures: choose another"),
        ("clip", "'clip' takes input_ids, not pictures"),
        ("vit_mae", "'vit_mae' hides a random part of each picture"),
        ("siglip2_vision_model", "takes patches of pictures of many shapes"),
    ],
)
def test_a_backbone_that_does_not_suit_is_refused(model_type, message):
    with pytest.raises(ValueError, match=message):
        refuse_unsuitable(AutoConfig.for_model(model_type))
    refuse_unsuitable(AutoConfig.for_model("convnext"), "pooler")
    with pytest.raises(ValueError, match="this backbone gives no pooled vector; use 'cls', 'mean' or 'cls_mean'"):
        refuse_unsuitable(ViTConfig(), "pooler")
