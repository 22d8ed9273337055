"""`EmbeddingIndex`: the artworks nearest to a picture, among those whose vectors scripts/predict.py wrote.

All vectors have length 1, so the inner product that FAISS compares is their cosine; the search is exact.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from datasets import Dataset
from torch import Tensor

from ..errors import UserError, as_user_error
from ..model.pipeline_artgraph_vit import ArtGraphPipeline
from .predict import OWN_COLUMNS, REPORT, model_digest


@dataclass(frozen=True)
class EmbeddingIndex:
    """Made by [`EmbeddingIndex.load`].

    Args:
        artworks (`Dataset`): rows of predictions, with a FAISS index over `embedding`.
    """

    artworks: Dataset

    @classmethod
    def load(cls, folder: str | Path, pipe: ArtGraphPipeline) -> EmbeddingIndex:
        """Reads predictions and indexes their vectors.

        Args:
            folder (`str` or `Path`): written by `scripts/predict.py --embeddings`.
            pipe ([`ArtGraphPipeline`]): of the model that made them; vectors of two models cannot be compared.

        Raises:
            UserError: if the folder holds no such predictions, or another model made them, or FAISS is missing.
        """
        with as_user_error("Search needs FAISS", "pip install 'artgraph_vit[search]'.", kinds=(ImportError,)):
            import faiss
        folder = Path(folder).expanduser()
        with as_user_error(f"{folder} holds no finished predictions", "make them with scripts/predict.py."):
            report = json.loads((folder / REPORT).read_text(encoding="utf-8"))
        if not report.get("embeddings"):
            raise UserError(
                f"The predictions in {folder} have no vectors: make them anew by scripts/predict.py --embeddings."
            )
        if report.get("model") != model_digest(pipe.model, pipe.image_processor):
            raise UserError(f"The vectors in {folder} were made by another model: search with that, or predict anew.")
        artworks: Any = Dataset.from_parquet(sorted(str(file) for file in (folder / "data").glob("*.parquet")))
        readable = [index for index, error in enumerate(artworks["error"]) if error is None]
        artworks = artworks.select(readable)
        artworks.add_faiss_index("embedding", metric_type=faiss.METRIC_INNER_PRODUCT)
        return cls(artworks)

    def nearest(self, vector: Tensor, k: int = 10) -> list[dict[str, Any]]:
        """The artworks nearest to a vector, the nearest first.

        Args:
            vector (`FloatTensor` of shape `(hidden_size,)`): of length 1, as [`ArtGraphPipeline.embed`] gives it.
            k (`int`, *optional*, defaults to 10).

        Returns:
            For each `name`, `score` (the cosine, at most 1), `thumbnail` (a PIL picture) and `answers` (as the
            pipeline gave them).
        """
        query = vector.detach().float().cpu().numpy()
        scores, columns = self.artworks.get_nearest_examples("embedding", query, k=min(k, len(self.artworks)))
        rows = [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]
        return [
            {
                "name": row["name"],
                "score": float(score),
                "thumbnail": row["thumbnail"],
                "answers": {task: answer for task, answer in row.items() if task not in OWN_COLUMNS},
            }
            for score, row in zip(scores, rows, strict=True)
        ]
