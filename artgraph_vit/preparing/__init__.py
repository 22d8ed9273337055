"""From a source of artworks to a dataset that is checked and fast to read: pictures -> shards -> report, card."""

from .encoding import PictureEncoder
from .prepare import DatasetCardOptions, prepare_dataset

__all__ = ["DatasetCardOptions", "PictureEncoder", "prepare_dataset"]
