"""ArtGraph as a graph: artworks, and edges from them to the nodes that are their labels.

Read from the files that its exporter writes (artgraph_raw.py).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from datasets import Dataset

from ...model.tasks import Task
from .artgraph_csv import in_a_split
from .files import PictureFolder, read_split_files
from .rows import ArtworkTable, DataError, ReadingOptions, rows_of_table


@dataclass(frozen=True)
class Relation:
    """How a task is written in the graph: the type of its nodes, and the names its edges have had."""

    task: str
    node_type: str
    names: tuple[str, ...]


RELATIONS = (
    Relation("artist", "artist", ("createdby", "author")),
    Relation("style", "style", ("hasstyle", "style")),
    Relation("genre", "genre", ("hasgenre", "genre")),
    Relation("tags", "tag", ("about",)),
    Relation("media", "media", ("madeof", "media")),
)


def rows_of_graph(
    where: str,
    names: Iterable[str],
    labels: Mapping[str, Mapping[str, list[str]]],
    images: Path,
    splits: Path,
    options: ReadingOptions,
) -> tuple[Dataset, list[Task]]:
    """Raw rows of a graph, in the order of the artworks' names.

    Args:
        where (`str`): how errors call the graph.
        names (`Iterable[str]`): of all artworks, each the name of its file in `images`.
        labels (`Mapping[str, Mapping[str, list[str]]]`): for each task the labels of the artworks that have any.
        images, splits (`Path`): the folders of the pictures and of `{train,val,test}.txt`, which need not be there.
        options ([`ReadingOptions`]).
    """
    ordered = sorted(names)
    pictures = PictureFolder(images)
    twice = next((name for name, following in pairwise(ordered) if name == following), None)
    if twice is not None:
        raise DataError(f"{where} has two artworks called {twice!r}: a name leads to one picture, so rename one.")
    table = ArtworkTable(
        where,
        ordered,
        [pictures.path_of(name, where) for name in ordered],
        [None] * len(ordered),
        {task: [labels_of.get(name) for name in ordered] for task, labels_of in labels.items()},
    )
    split_of = read_split_files(splits, ordered, where)
    return rows_of_table(in_a_split(table, split_of) if split_of else table, options)
