"""From a source of artworks to a dataset that is checked and fast to read: pictures -> shards -> report, card."""

from .prepare import prepare_dataset

__all__ = ["prepare_dataset"]
