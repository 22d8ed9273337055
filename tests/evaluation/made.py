"""A made run: log history and results with figures that can be told apart."""

from artgraph_vit.evaluation.results import Results

TASKS = ["artist", "tags"]


def history() -> list[dict]:
    logs = []
    for epoch in range(1, 5):
        step = 10 * epoch
        trained = {"loss": 3.0, "learning_rate": 1e-3, "artist_loss": 2 / epoch, "tags_loss": 0.7}
        logs.append({**trained, "artist_weight": 0.5 * epoch, "epoch": epoch, "step": step})
        evaluated = {"eval_loss": 3.1, "eval_artist_loss": 2.2 / epoch, "eval_tags_loss": 0.8}
        scores = {
            "eval_artist_macro_f1": 0.2 * epoch,
            "eval_tags_macro_f1": 0.1 * epoch,
            "eval_avg_macro_f1": 0.15 * epoch,
        }
        logs.append({**evaluated, **scores, "epoch": epoch, "step": step})
    logs.insert(2, {"frozen_test_loss": 9.0, "frozen_test_artist_macro_f1": 0.9, "epoch": 1, "step": 10})
    return [*logs, {"train_runtime": 12.0, "epoch": 4, "step": 40}]


def results(**changed) -> Results:
    """`changed` are entries of `results.json`."""
    metrics = {
        **{"artist_accuracy": 0.611, "artist_macro_precision": 0.622, "artist_macro_recall": 0.633},
        **{"artist_macro_f1": 0.644, "artist_absent_labels": 3, "tags_hamming_loss": 0.0555},
        **{"artist_balanced_accuracy": 0.655, "artist_top5_accuracy": 0.866},
        **{"tags_mean_average_precision": 0.544, "tags_micro_f1": 0.577},
        **{"tags_macro_precision": 0.511, "tags_macro_recall": 0.522, "tags_macro_f1": 0.533, "tags_absent_labels": 0},
        "avg_macro_f1": 0.586,
    }
    majority = dict.fromkeys(metrics, 0.111) | {"avg_macro_f1": 0.0777}
    made = {
        **{"split": "test", "rows": 1240, "known_rows": {"artist": 1230, "tags": 930}, "loss": 1.25},
        **{"task_losses": {"artist": 1.1234, "tags": 0.0321}, "metrics": metrics, "majority_metrics": majority},
        **{"frozen_metrics": dict.fromkeys(metrics, 0.333), "best_epoch": 3.0, "best_step": 30},
        **{"best_validation_avg_macro_f1": 0.6, "epochs": 4, "frozen_epochs": 1, "seed": 42},
        "recipe": {"backbone": "google/vit-base-patch16-224-in21k", "from_scratch": False, "learning_rate": 5e-5},
        "data": {"source": "made", "train_rows": 4000, "validation_rows": 1100, "test_rows": 1240},
        "versions": {"torch": "2.13.0"},
    }
    return Results(**{**made, **changed})
