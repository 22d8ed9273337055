"""Vectors of predictions, and the search among them, against a plain matrix product."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from artgraph_vit import ArtGraphPipeline
from artgraph_vit.errors import UserError
from artgraph_vit.serving.search import EmbeddingIndex

from .conftest import BAD, COUNT, run_script
from .test_predict import predict, rows_of


@pytest.fixture
def predictions(model_folder, parquet_folder, tmp_path):
    predict(model_folder, parquet_folder, tmp_path / "out", "--embeddings")
    return tmp_path / "out"


def test_vectors_are_the_pipelines_own(predictions, pipe, encoded_pictures):
    rows = rows_of(predictions)
    for number in (0, 33, 59):
        vector = torch.tensor(rows[number]["embedding"])
        torch.testing.assert_close(vector, pipe.embed(encoded_pictures[number]), atol=1e-5, rtol=0)
        assert vector.norm().item() == pytest.approx(1, abs=1e-5)
        assert vector.shape == (2 * pipe.model.config.backbone_config.hidden_size,)  # CLS and mean
        assert rows[number]["thumbnail"].size == (40, 30)
    assert rows[BAD[0]]["embedding"] is None


def test_the_nearest_are_those_of_a_plain_product(predictions, pipe, encoded_pictures):
    index = EmbeddingIndex.load(predictions, pipe)
    query = pipe.embed(encoded_pictures[5])
    rows = [row for row in rows_of(predictions) if row["error"] is None]
    scores = np.array([row["embedding"] for row in rows], dtype=np.float32) @ query.numpy()
    order = np.argsort(-scores, kind="stable")
    found = index.nearest(query, k=6)
    assert found[0]["name"] == "artwork 5"
    assert [entry["score"] for entry in found] == pytest.approx(scores[order[:6]].tolist(), abs=1e-5)
    assert {entry["name"] for entry in found} == {rows[number]["name"] for number in order[:6]}
    assert isinstance(found[0]["thumbnail"], Image.Image)
    assert set(found[0]["answers"]) == {"artist", "genre", "tags"}
    assert len(index.nearest(query, k=10 * COUNT)) == COUNT - len(BAD)


def test_the_script_prints_a_line_an_artwork(predictions, model_folder, tmp_path, encoded_pictures, capsys):
    (tmp_path / "query.png").write_bytes(encoded_pictures[12])
    run_script("search.py", model_folder, predictions, tmp_path / "query.png", "--k", "3")
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 3
    assert lines[0].startswith("1.000  artwork 12  ")
    with pytest.raises(UserError, match="there is no such file"):
        run_script("search.py", model_folder, predictions, tmp_path / "nosuch.png")


def test_vectors_of_another_model_are_refused(predictions, pipe, build_model, tmp_path):
    with pytest.raises(UserError, match="were made by another model"):
        EmbeddingIndex.load(predictions, ArtGraphPipeline(build_model(seed=5), pipe.image_processor, device="cpu"))
    pipe.model.config.pooling = "mean"  # the same tensors, and other vectors
    with pytest.raises(UserError, match="were made by another model"):
        EmbeddingIndex.load(predictions, pipe)
    pipe.model.config.pooling = "cls_mean"
    with pytest.raises(UserError, match="holds no finished predictions"):
        EmbeddingIndex.load(tmp_path, pipe)
    report = json.loads((predictions / "report.json").read_text())
    (predictions / "report.json").write_text(json.dumps({**report, "embeddings": False}))
    with pytest.raises(UserError, match=r"have no vectors: make them anew by scripts/predict\.py --embeddings"):
        EmbeddingIndex.load(predictions, pipe)
