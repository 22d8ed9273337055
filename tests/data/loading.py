"""Reading in one line, as many tests do."""

from datasets import Dataset, DatasetDict

from artgraph_vit.data import DataArguments, load_artworks
from artgraph_vit.data.splits import assign_splits, divide_by_split


def load(source, tasks=None, **options):
    """Raw rows and tasks; the options are those of `DataArguments`."""
    return load_artworks(DataArguments(str(source), **options), tasks)


def divided(rows: Dataset, seed: int = 42) -> DatasetDict:
    return divide_by_split(assign_splits(rows, seed))
