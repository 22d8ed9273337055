"""Predictions for as many pictures as one likes: source -> decoding -> model -> parquet shards."""

from .predict import predict_pictures
from .source import open_pictures

__all__ = ["open_pictures", "predict_pictures"]
