"""What `train` refuses of the data before any long work."""

import pytest

from artgraph_vit.data.options import DataArguments
from artgraph_vit.errors import UserError
from artgraph_vit.publishing.card import CardOptions
from artgraph_vit.training.arguments import ArtGraphTrainingArguments, ModelArguments
from artgraph_vit.training.run import train

BACKBONE = "configs/demo-backbone"


@pytest.mark.parametrize(
    ("metric", "named"), [("artist_macro_f1", "artist"), ("avg_macro_f1", None)], ids=["a task's", "the average"]
)
def test_a_metric_that_the_validation_split_cannot_give_is_refused(artgraph_folder, tmp_path, request, metric, named):
    """Of two tasks one or none has a label there."""
    rows = [{"image": f"{i}.png", "artist": "ab"[i % 2], "genre": "cd"[i % 2]} for i in range(12)]
    for row in rows[8:10]:
        row["artist"] = ""
        row["genre"] = row["genre"] if named else ""
    names = [row["image"] for row in rows]
    folder = artgraph_folder(rows, splits={"train": names[:8], "val": names[8:10], "test": names[10:]})
    data = DataArguments(source=str(folder), min_count=1, tasks=["artist", "genre"])
    model = ModelArguments(backbone=str(request.config.rootpath / BACKBONE), from_scratch=True)
    args = ArtGraphTrainingArguments(output_dir=str(tmp_path / "run"), use_cpu=True, metric_for_best_model=metric)
    with pytest.raises(
        UserError, match=rf"^The validation split has no label of {named or 'any task'}, so metric_for"
    ):
        train(model, data, CardOptions(), args)
