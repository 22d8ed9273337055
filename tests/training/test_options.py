"""Options: a YAML file, the command line over it, and errors that say what to do."""

from pathlib import Path

import pytest
import yaml

from artgraph_vit.data.options import DataArguments
from artgraph_vit.errors import UserError
from artgraph_vit.publishing.card import CardOptions
from artgraph_vit.training.arguments import ArtGraphTrainingArguments, ModelArguments
from artgraph_vit.training.options import parse_options
from artgraph_vit.training.recipe import departures, recipe_of
from artgraph_vit.training.run import train

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


def test_the_recipe_file_says_nothing_else_than_the_defaults(tmp_path):
    plain = parse("--source", "somewhere", "--output_dir", tmp_path)
    recipe = parse(CONFIGS / "artgraph.yaml", "--source", "somewhere", "--output_dir", tmp_path)
    for one, other in zip(plain, recipe, strict=True):
        differing = {
            name for name, value in vars(one).items() if value != getattr(other, name) and not name.startswith("_")
        }
        about = {"dataset_name", "language", "dataloader_num_workers"}
        assert differing <= {*about, "accelerator_config", "distributed_state"}


@pytest.mark.parametrize("name", sorted(path.name for path in CONFIGS.glob("*.yaml")))
def test_every_config_parses(name, tmp_path):
    parse(CONFIGS / name, "--source", "somewhere", "--output_dir", tmp_path)


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
        ({"frozen_epochs": 36}, [], "frozen_epochs=36: use a whole number from 0 to num_train_epochs (35)"),
        ({"on_bad_image": "ignore"}, [], "invalid choice: 'ignore'"),
        ({"remove_unused_columns": True}, [], "remove_unused_columns=True: ArtGraphTrainer needs False"),
        ({"tasks": "artist", "seed": [1, 2]}, [], "there is no option '2'"),
        ({"fp16": True, "use_cpu": True}, [], "fp16 needs a GPU"),
        ({"num_train_epochs": -1, "frozen_epochs": 0}, [], "num_train_epochs=-1: use a number above 0"),
        ({"bf16_full_eval": True}, [], "would round the weights for good"),
        ({"accelerator_config": {"dispatch_batches": True}}, [], "split_batches and dispatch_batches must be false"),
        ({"push_to_hub": True}, [], "run scripts/push.py afterwards"),
        ({"source": ""}, [], "There is no source: pass --source"),
        ({"columns": "tags"}, [], "is not JSON"),
    ],
)
def test_a_wrong_option_is_one_sentence(tmp_path, capsys, options, argv, message):
    with pytest.raises(SystemExit) as stopped:
        parse(write(tmp_path, **options), *argv)
    assert stopped.value.code == 2
    assert message in capsys.readouterr().err.replace("\n", " ")


def test_a_missing_or_broken_file_is_named(tmp_path, capsys):
    for text, message in ((None, "there is no file"), ("a: [1", "is not valid YAML"), ("- a", "does not hold")):
        path = tmp_path / "broken.yaml"
        if text is not None:
            path.write_text(text)
        with pytest.raises(SystemExit):
            parse(path)
        error = capsys.readouterr().err
        assert message in error
        assert "broken.yaml" in error


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


def test_a_tuned_model_is_not_written_over_untuned(tmp_path):
    (tmp_path / "config.json").write_text('{"tuning": {"method": "shrunk"}}')
    options = parse("--source", "somewhere", "--output_dir", tmp_path)
    with pytest.raises(UserError, match="is finished and tuned, and this would write it anew, untuned: pass --tune"):
        train(*options)
