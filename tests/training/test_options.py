"""Options: a YAML file, the command line over it, and errors that say what to do."""

import math
import re
from pathlib import Path

import pytest
import yaml

from artgraph_vit.data.options import DataArguments
from artgraph_vit.errors import UserError
from artgraph_vit.publishing.card import CardOptions
from artgraph_vit.training.arguments import ArtGraphTrainingArguments, ModelArguments
from artgraph_vit.training.options import parse_options
from artgraph_vit.training.run import departures, recipe_of

CLASSES = (ModelArguments, DataArguments, CardOptions, ArtGraphTrainingArguments)
CONFIGS = Path(__file__).parents[2] / "configs"


def parse(*argv, **kwargs):
    return parse_options(CLASSES, [str(argument) for argument in argv], **kwargs)


def write(tmp_path, **options) -> Path:
    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump({"source": "somewhere", "output_dir": str(tmp_path), **options}))
    return path


def test_defaults_are_the_published_recipe():
    model, data, _, args = parse("--source", "somewhere")
    assert (args.num_train_epochs, args.frozen_epochs) == (35, 5)
    assert (args.frozen_learning_rate, args.learning_rate) == (1e-3, 5e-5)
    assert (args.per_device_train_batch_size, args.max_grad_norm, args.weight_decay) == (32, 1.0, 0.01)
    assert (args.adam_beta1, args.adam_beta2, args.adam_epsilon) == (0.9, 0.999, 1e-8)
    assert args.lr_scheduler_type == "constant"
    assert args.metric_for_best_model == "avg_macro_f1"
    assert args.load_best_model_at_end
    assert args.seed == 42
    assert (model.backbone, model.head_dropout) == ("google/vit-base-patch16-224-in21k", 0.3)
    assert data.min_count == 100


def test_every_config_parses_and_the_recipes_says_nothing_else_than_the_defaults(tmp_path):
    for path in CONFIGS.glob("*.yaml"):
        parse(path, "--source", "somewhere", "--output_dir", tmp_path)
    plain = parse("--source", "somewhere", "--output_dir", tmp_path)
    recipe = parse(CONFIGS / "artgraph.yaml", "--source", "somewhere", "--output_dir", tmp_path)
    for one, other in zip(plain, recipe, strict=True):
        differing = {
            name for name, value in vars(one).items() if value != getattr(other, name) and not name.startswith("_")
        }
        about = {"dataset_name", "language", "dataloader_num_workers"}
        assert differing <= {*about, "accelerator_config", "distributed_state"}


def test_the_command_line_overrides_the_file(tmp_path):
    path = write(
        tmp_path, learning_rate="3e-4", frozen_epochs=2, tasks=["artist", "tags"], columns={"tags": "subjects"}
    )
    _, data, _, args = parse(path, "--frozen-epochs", 1, "--use_cpu")
    assert (args.learning_rate, args.frozen_epochs, args.use_cpu) == (3e-4, 1, True)
    assert data.tasks == ["artist", "tags"]
    assert data.column_of_task == {"tags": "subjects"}


def test_no_argument_reads_the_default_config(tmp_path):
    path = write(tmp_path, frozen_epochs=4)
    assert parse(default_config=path)[3].frozen_epochs == 4
    assert parse("--source", "elsewhere", default_config=path)[3].frozen_epochs == 5


@pytest.mark.parametrize(
    ("options", "argv", "message"),
    [
        ({"frozen_epoch": 3}, [], "unknown option 'frozen_epoch': did you mean frozen_epochs?"),
        ({}, ["--min_cuont", "3"], "there is no option '--min_cuont': did you mean --min_count?"),
        ({"min_count": "many"}, [], "invalid int value: 'many'"),
        ({"on_bad_image": "ignore"}, [], "invalid choice: 'ignore'"),
        ({"tasks": "artist", "seed": [1, 2]}, [], "there is no option '2'"),
        ({"source": ""}, [], "There is no source: pass --source"),
        ({"columns": "tags"}, [], "is not JSON"),
    ],
)
def test_a_wrong_option_is_one_sentence(tmp_path, capsys, options, argv, message):
    with pytest.raises(SystemExit) as stopped:
        parse(write(tmp_path, **options), *argv)
    assert stopped.value.code == 2
    assert message in capsys.readouterr().err.replace("\n", " ")


# What `ArtGraphTrainingArguments` refuses before anything is loaded; without an option is what it would otherwise be.
STEPS = {"eval_strategy": "steps", "save_strategy": "steps"}
LEAVE_OUT = {
    **dict.fromkeys(("bf16_full_eval", "fp16_full_eval", "remove_unused_columns", "prediction_loss_only"), True),
    **dict.fromkeys(("push_to_hub", "auto_find_batch_size", "enable_jit_checkpoint", "ignore_data_skip"), True),
    **{"restore_callback_states_from_checkpoint": True, "dataloader_in_order": False, "batch_eval_metrics": False},
    **{"label_names": ["artist"], "include_for_metrics": ["inputs"], "label_smoothing_factor": 0.1},
    **{"train_sampling_strategy": "group_by_length", "optim_target_modules": "all"},
    **{"neftune_noise_alpha": 5.0, "use_liger_kernel": True},
    **{"deepspeed": "zero2.json", "fsdp": "full_shard"},
}
REFUSED = [
    ({"frozen_epochs": 36}, r"^frozen_epochs=36: use a whole number from 0 to num_train_epochs \(35\)\.$"),
    ({"num_train_epochs": -1, "frozen_epochs": 0}, r"^num_train_epochs=-1: use a number above 0\.$"),
    ({"layer_decay": 0.0}, r"^layer_decay=0: use a number above 0, at most 1, such as 0\.75\.$"),
    ({"layer_decay": 0.5, "frozen_epochs": 35}, "^layer_decay is for the second phase, and there is none"),
    ({"lr_scheduler_type": "cosine", "warmup_steps": 1.5}, r"^warmup_steps=1\.5: use a whole number, or a part"),
    ({"warmup_steps": 0.1}, "^warmup_steps=0.1 does nothing with lr_scheduler_type='constant': use cosine or"),
    ({"lr_scheduler_type": "reduce_lr_on_plateau"}, "^lr_scheduler_type='reduce_lr_on_plateau' knows no phases"),
    *(({"ema_decay": decay}, "^ema_decay=.*: use a number between 0 and 1, such as") for decay in (0.0, 1.0, -0.5)),
    *(({"mixup_alpha": alpha}, "^mixup_alpha=.*: use a number of at least 0") for alpha in (-0.1, math.inf, math.nan)),
    (
        {"save_strategy": "best", "eval_strategy": "no"},
        "^load_best_model_at_end needs evaluations: give eval_",
    ),
    (
        {"greater_is_better": False},
        "^metric_for_best_model=avg_macro_f1 is best where it is large: pass --greater_",
    ),
    ({"dataloader_persistent_workers": True}, "^dataloader_persistent_workers needs workers: give dataloader_num_wor"),
    *(
        ({name: -1}, f"^{name}=-1: use a number of at least")
        for name in (
            *("learning_rate", "frozen_learning_rate", "weight_decay", "max_grad_norm", "save_total_limit"),
            *("per_device_train_batch_size", "per_device_eval_batch_size", "gradient_accumulation_steps"),
        )
    ),
    ({"adam_beta1": 1.5}, r"^adam_beta1=1\.5: use a number from 0 to below 1"),
    ({"metric_for_best_model": "eval_loss"}, "^metric_for_best_model=loss is best where it is small: pass --greater_"),
    ({**STEPS, "eval_steps": 3, "save_steps": 6}, "^load_best_model_at_end needs a checkpoint at each evaluation"),
    ({"save_strategy": "no"}, "^load_best_model_at_end needs a checkpoint at each evaluation"),
    ({"optim": "galore_adamw"}, "^optim='galore_adamw' groups parameters itself, as the phases do"),
    ({"fp16": True}, "^fp16 needs a GPU"),
    *(({name: value}, f"^{name}=.*: leave it out; ") for name, value in LEAVE_OUT.items()),
    ({"label_smoothing_factor": 0.1}, "use label_smoothing"),
    ({"push_to_hub": True}, "run scripts/push.py afterwards"),
    *(
        ({"accelerator_config": {name: value}}, f"^accelerator_config: {name} must be {str(not value).lower()}, as by")
        for name, value in {
            **{"split_batches": True, "dispatch_batches": True, "even_batches": False, "use_seedable_sampler": False},
        }.items()
    ),
]


@pytest.mark.parametrize(
    ("options", "sentence"), REFUSED, ids=lambda value: ", ".join(value) if isinstance(value, dict) else ""
)
def test_an_option_with_which_training_would_be_wrong_is_one_sentence(tmp_path, options, sentence):
    with pytest.raises(ValueError, match=sentence) as refused:
        ArtGraphTrainingArguments(output_dir=str(tmp_path), use_cpu=True, **options)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(("variable", "engine"), [("FSDP", "FSDP"), ("DEEPSPEED", "DeepSpeed")])
def test_a_launcher_that_asks_for_another_engine_is_told_what_there_is(tmp_path, monkeypatch, variable, engine):
    monkeypatch.setenv(f"ACCELERATE_USE_{variable}", "true")
    with pytest.raises(UserError, match=rf"^The launcher asks for {engine}: use .*several_gpus\.yaml\. DDP is the"):
        ArtGraphTrainingArguments(output_dir=str(tmp_path), use_cpu=True)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"log_variance_init": "auto", "task_weighting": "equal"},
            "log_variance_init='auto' is for task_weighting 'uncertainty'",
        ),
        ({"log_variance_init": "prior"}, "log_variance_init='prior': use a number, or auto"),
        ({"log_variance_init": "nan"}, "log_variance_init='nan': use a number, or auto"),
        ({"task_weights": "artist=1"}, "is not JSON like"),
        *(({"drop_path_rate": rate}, "drop_path_rate=.*: use a number from 0 to below 1") for rate in (-0.1, 1.0)),
    ],
)
def test_options_of_the_model_that_cannot_be_meant(options, message):
    with pytest.raises(ValueError, match=message):
        ModelArguments(**options)


@pytest.mark.parametrize(
    ("text", "message"), [(None, "there is no file"), ("a: [1", "is not valid YAML"), ("- a", "does not hold")]
)
def test_a_missing_or_broken_file_is_named(tmp_path, capsys, text, message):
    path = tmp_path / "broken.yaml"
    if text is not None:
        path.write_text(text)
    with pytest.raises(SystemExit):
        parse(path)
    assert re.search(rf"{message}.*broken.yaml|broken.yaml {message}", capsys.readouterr().err)


def test_help_groups_the_options_and_explains_them(capsys):
    with pytest.raises(SystemExit):
        parse("--help")
    text = capsys.readouterr().out
    for group, option in (("model:", "--backbone"), ("data:", "--min_count"), ("training:", "--frozen_epochs")):
        assert text.index(group) < text.index(f"  {option}")
    assert "Epochs of the first phase" in " ".join(text.split())


def test_a_file_with_lists_may_stand_before_positionals(tmp_path):
    path = write(tmp_path, tasks=["artist", "tags"], language=["en"])
    _, data, _, args = parse(path, "runs/demo", "--seed", "7", positionals=("backbone",))
    model, *_ = parse(path, "runs/demo", positionals=("backbone",))
    assert (model.backbone, data.tasks, args.seed) == ("runs/demo", ["artist", "tags"], 7)


def test_a_recipe_knows_where_it_departs_from_the_published_one(tmp_path):
    def of(name: str, *more: str) -> dict:
        model, data, _, args = parse(CONFIGS / name, "--source", "somewhere", "--output_dir", tmp_path, *more)
        return departures({**recipe_of(model, data), **args.recipe(), "tune_thresholds": args.tune_thresholds})

    assert of("artgraph.yaml") == {}
    assert of("artgraph.yaml", "--seed", "7", "--min_count", "5", "--backbone", "some/other") == {}
    assert of("artgraph.yaml", "--mixup_alpha", "0.2", "--pooling", "mean") == {"mixup_alpha": 0.2, "pooling": "mean"}
    strong = of("artgraph-strong.yaml")
    assert {"tune_thresholds", "log_variance_init", "max_positive_weight"} <= set(strong)
    assert "recipe_name" not in strong
