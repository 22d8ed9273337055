"""The metrics of artgraph_vit as an `evaluate` module: accuracies or Hamming loss, macro precision, recall and F1.

Nothing is computed here: the values are those of `artgraph_vit.evaluation.metrics.MultiTaskMetrics`. Keep one import
a line, because `evaluate` reads the imports of this file as text.
"""

import datasets
import evaluate
import torch

from artgraph_vit import Task
from artgraph_vit.evaluation.metrics import MultiTaskMetrics
from artgraph_vit.model.tasks import UNKNOWN

_DESCRIPTION = """
Metrics of a model that predicts several things of one artwork, such as its artist, style, genre, tags and media.
A task has one label per artwork (accuracy, balanced accuracy) or several (Hamming loss, micro F1); both kinds have
macro precision, recall and F1. Top-5 accuracy and mean average precision need scores, which are not given here.
A label that nobody recorded, -100, counts neither for nor against the prediction. `avg_macro_f1` is the plain mean of
the tasks' macro F1.
"""

_KWARGS_DESCRIPTION = """
Args (of `evaluate.load`):
    tasks (`list[dict]`): the tasks with their labels, as they stand in the `config.json` of a model: each with
        `name`, `problem_type` ("single_label_classification" or "multi_label_classification") and `labels`.

Args:
    predictions (`list[dict]`): for each artwork one value a task: the index of a label, or a list of 0 and 1, one
        for each label.
    references (`list[dict]`): likewise; -100 for an unknown label, a list of -100 where no label was recorded.

Returns:
    `dict[str, float]`: `{task}_accuracy` and `{task}_balanced_accuracy`, or `{task}_hamming_loss` and
    `{task}_micro_f1`, and `{task}_macro_precision`, `{task}_macro_recall`, `{task}_macro_f1` and
    `{task}_absent_labels` (labels that no artwork carries) of each task with a known artwork; and `avg_macro_f1`.

Examples:
    >>> tasks = [
    ...     {"name": "genre", "problem_type": "single_label_classification", "labels": ["landscape", "portrait"]},
    ...     {"name": "tags", "problem_type": "multi_label_classification", "labels": ["Tree", "sea", "sky"]},
    ... ]
    >>> metrics = evaluate.load("metrics/artgraph_vit_metrics", tasks=tasks)
    >>> results = metrics.compute(
    ...     predictions=[{"genre": 0, "tags": [1, 0, 1]}, {"genre": 1, "tags": [0, 0, 0]}],
    ...     references=[{"genre": 0, "tags": [1, 0, 1]}, {"genre": -100, "tags": [0, 1, 0]}],
    ... )
    >>> results["genre_accuracy"]
    1.0
"""

_CITATION = """
@inproceedings{kendall2018multi,
    title = {Multi-Task Learning Using Uncertainty to Weigh Losses for Scene Geometry and Semantics},
    author = {Kendall, Alex and Gal, Yarin and Cipolla, Roberto},
    booktitle = {IEEE/CVF Conference on Computer Vision and Pattern Recognition},
    year = {2018},
}
"""


@evaluate.utils.file_utils.add_start_docstrings(_DESCRIPTION, _KWARGS_DESCRIPTION)
class ArtGraphViTMetrics(evaluate.Metric):
    """The `evaluate` form of `MultiTaskMetrics`.

    Raises:
        ValueError: if `tasks` is missing, or a prediction or reference does not fit its task.
    """

    def __init__(self, *args, tasks=None, **kwargs):
        self.tasks = [Task.from_dict(task) for task in tasks or ()]
        if not self.tasks or any(task.num_labels == 0 for task in self.tasks):
            raise ValueError(
                "Pass the tasks with their labels: evaluate.load(path, tasks=[{'name': ..., 'problem_type': ..., "
                "'labels': [...]}, ...]), as in the config.json of the model."
            )
        super().__init__(*args, **kwargs)

    def _info(self):
        artwork = {
            # float64 for the 0s and 1s of a multi-label task: an integer column would make 0 of a probability.
            task.name: datasets.List(datasets.Value("float64")) if task.is_multi_label else datasets.Value("int64")
            for task in self.tasks
        }
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation=_CITATION,
            inputs_description=_KWARGS_DESCRIPTION,
            features=datasets.Features({"predictions": artwork, "references": artwork}),
        )

    def _compute(self, predictions, references):
        metrics = MultiTaskMetrics(self.tasks)
        for task in self.tasks:
            predicted = _values(predictions, task, "predictions")  # (N,) or (N, C)
            labels = _values(references, task, "references", may_be_unknown=True)
            if not task.is_multi_label:
                predicted = torch.nn.functional.one_hot(predicted, task.num_labels)  # (N, C)
            metrics.update_predictions(task, predicted.bool(), labels)
        return metrics.compute()


def _values(artworks, task, where, may_be_unknown=False):
    """The values of one task, checked: int64 `(N,)`, or float64 `(N, C)` for a multi-label task."""
    allowed = {*range(2 if task.is_multi_label else task.num_labels), *([UNKNOWN] if may_be_unknown else [])}
    for index, artwork in enumerate(artworks):
        value = artwork[task.name]
        if task.is_multi_label:
            fits = value is not None and len(value) == task.num_labels and allowed.issuperset(value)
            expected = f"a list of {task.num_labels} numbers, each 0 or 1"
        else:
            fits = value in allowed
            expected = f"the index of one of the {task.num_labels} labels"
        if not fits:
            unknown = f" (or {UNKNOWN} for unknown)" if may_be_unknown else ""
            raise ValueError(f"{where}[{index}][{task.name!r}] is {value}, but should be {expected}{unknown}.")
    dtype = torch.float64 if task.is_multi_label else torch.int64
    return torch.tensor([artwork[task.name] for artwork in artworks], dtype=dtype)
