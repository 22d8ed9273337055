"""ArtGraph's raw form, as its graph exporter writes it.

`mapping/<type>_entidx2name.csv` holds lines `id,name` for artwork, artist, style, genre, tag and media; an artwork's
name is that of its file in `images/`. `raw/relations/artwork___<relation>___<type>/edge.csv` holds lines
`artwork id,label id`. Neither has a header.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from datasets import Dataset

from ...model.tasks import Task
from .artgraph_csv import csv_lines
from .graph import RELATIONS, Relation, rows_of_graph
from .rows import DataError, ReadingOptions


def is_artgraph_raw(folder: Path) -> bool:
    return (folder / "mapping").is_dir() and (folder / "raw" / "relations").is_dir()


def read_artgraph_raw(folder: Path, options: ReadingOptions, images: Path | None = None) -> tuple[Dataset, list[Task]]:
    """Raw rows of the graph in `folder`, and their tasks.

    Raises:
        DataError: names the file and line that is wrong.
    """
    artworks = _read_mapping(folder, "artwork")
    labels = {}
    for relation in RELATIONS:
        edges = _edges_of(folder, relation)
        if edges is not None:
            labels[relation.task] = _labels(folder, relation, edges, artworks)
    return rows_of_graph(
        str(folder),
        artworks.values(),
        labels,
        images or folder / "images",
        folder / "splits",
        options,
    )


def _labels(folder: Path, relation: Relation, edges: Path, artworks: dict[str, str]) -> dict[str, list[str]]:
    names = _read_mapping(folder, relation.node_type)
    labels: dict[str, list[str]] = {}
    for line, (source, target) in _pairs(edges):
        for node, known, node_type in ((source, artworks, "artwork"), (target, names, relation.node_type)):
            if node not in known:
                raise DataError(
                    f"{edges}, line {line}: there is no {node_type} {node!r} in {_mapping(node_type)}: add it."
                )
        labels.setdefault(artworks[source], []).append(names[target])
    return labels


def _edges_of(folder: Path, relation: Relation) -> Path | None:
    """The file of a relation, under its present or a former name."""
    relations = folder / "raw" / "relations"
    candidates = [relations / f"artwork___{name}___{relation.node_type}" / "edge.csv" for name in relation.names]
    found = [path for path in candidates if path.is_file()]
    if len(found) > 1:
        raise DataError(f"{found[0].parent} and {found[1].parent} both lead to the task {relation.task!r}: keep one.")
    return found[0] if found else None


def _mapping(node_type: str) -> str:
    return f"mapping/{node_type}_entidx2name.csv"


def _read_mapping(folder: Path, node_type: str) -> dict[str, str]:
    path = folder / _mapping(node_type)
    if not path.is_file():
        raise DataError(f"There is no file {path}, which gives the {node_type} nodes their names: export it too.")
    names: dict[str, str] = {}
    for line, (node, name) in _pairs(path):
        if node in names:
            raise DataError(f"{path}, line {line}: the id {node!r} stands twice: give each node its own.")
        names[node] = name
    return names


def _pairs(path: Path) -> Iterator[tuple[int, tuple[str, str]]]:
    for number, cells in csv_lines(path, skipinitialspace=True):  # the exporter's own page writes "0, name"
        if len(cells) != 2 or not all(cells):
            raise DataError(f"{path}, line {number}: there should be two values, an id and another, not {cells}.")
        yield number, (cells[0], cells[1])
