"""ArtGraph, in the three forms that it is handed on in.

- Its csv export: `artgraph_dataset.csv` with a column `image` (a file name in `images/`) and one a task, where several
  labels stand in one cell, joined by ", ", and an empty cell is unknown.
- Its raw form, as its graph exporter writes it: `mapping/<type>_entidx2name.csv` holds lines `id,name` for artwork
  (the name of its file in `images/`), artist, style, genre, tag and media;
  `raw/relations/artwork___<relation>___<type>/edge.csv` holds lines `artwork id,label id`. Neither has a header.
- ArtSeek's JSON form: `{train,val,test}.json` and `images/<name>.jpg`. Each file holds `relationships`, which maps an
  artwork's id to lists of label ids by type, and for each type a map of ids to names; a map "artwork", where there is
  one, gives the artworks' names, else their ids are.

The splits of the first two are a column `split` or `splits/{train,val,test}.txt`, where they have them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from datasets import Dataset

from ...errors import UserError
from ...model.tasks import Task
from .files import PictureFolder, csv_lines, in_split_files, json_value, read_csv, read_text
from .rows import ArtworkTable, rows_of_table, split_name

if TYPE_CHECKING:
    from ..options import DataArguments

ARTGRAPH_CSV = "artgraph_dataset.csv"
ARTSEEK_FILES = ("train.json", "val.json", "test.json")


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


def is_artgraph(folder: Path, options: DataArguments) -> bool:
    """A folder of JSON files without pictures may well be a dataset of another form."""
    is_raw = (folder / "mapping").is_dir() and (folder / "raw" / "relations").is_dir()
    is_artseek = any((folder / name).is_file() for name in ARTSEEK_FILES) and _images(folder, options).is_dir()
    return (folder / ARTGRAPH_CSV).is_file() or is_raw or is_artseek


def read_artgraph(
    folder: Path, options: DataArguments, tasks: Sequence[str | Task] | None
) -> tuple[Dataset, list[Task]]:
    """Raw rows of a folder in one of the forms, and their tasks."""
    pictures = PictureFolder(_images(folder, options))
    if (folder / ARTGRAPH_CSV).is_file():
        table = in_split_files(_csv_table(folder / ARTGRAPH_CSV, pictures), folder / "splits")
    elif (folder / "mapping").is_dir():
        table = in_split_files(_raw_table(folder, pictures), folder / "splits")
    else:
        table = _artseek_table(folder, pictures)
    return rows_of_table(table, options, tasks)


def _images(folder: Path, options: DataArguments) -> Path:
    return Path(options.image_folder).expanduser() if options.image_folder is not None else folder / "images"


# ---- csv ----


def _csv_table(path: Path, pictures: PictureFolder) -> ArtworkTable:
    header, lines = read_csv(path)
    if "image" not in header:
        raise UserError(f"{path} has no column 'image'; its columns are {', '.join(header) or 'none'}.")
    table = ArtworkTable(str(path))
    for number, record in lines:
        place, name = f"{path}, line {number}", record["image"]
        if not name:
            raise UserError(f"{place}: the cell 'image' is empty: name the picture or remove the line.")
        split = split_name(record["split"], place) if "split" in record else None
        table.add(place, name, pictures.path_of(name, place), split, record)
    return table


# ---- raw ----


def _raw_table(folder: Path, pictures: PictureFolder) -> ArtworkTable:
    artworks = _read_mapping(folder, "artwork")
    labels = {}
    for relation in RELATIONS:
        edges = _edges_of(folder, relation)
        if edges is not None:
            labels[relation.task] = _labels(folder, relation, edges, artworks)
    table = ArtworkTable(str(folder))
    for artwork, name in sorted(artworks.items(), key=lambda pair: pair[1]):
        place = f"{folder}: {name!r}"
        cells = {task: labels_of.get(artwork) for task, labels_of in labels.items()}
        table.add(place, name, pictures.path_of(name, place), None, cells)
    return table


def _labels(folder: Path, relation: Relation, edges: Path, artworks: dict[str, str]) -> dict[str, list[str]]:
    names = _read_mapping(folder, relation.node_type)
    labels: dict[str, list[str]] = {}
    for place, (source, target) in _pairs(edges):
        for node, known, node_type in ((source, artworks, "artwork"), (target, names, relation.node_type)):
            if node not in known:
                raise UserError(f"{place}: there is no {node_type} {node!r} in {_mapping(node_type)}: add it.")
        labels.setdefault(source, []).append(names[target])
    return labels


def _edges_of(folder: Path, relation: Relation) -> Path | None:
    """The file of a relation, under its present or a former name."""
    relations = folder / "raw" / "relations"
    candidates = [relations / f"artwork___{name}___{relation.node_type}" / "edge.csv" for name in relation.names]
    found = [path for path in candidates if path.is_file()]
    if len(found) > 1:
        raise UserError(f"{found[0].parent} and {found[1].parent} both lead to the task {relation.task!r}: keep one.")
    return found[0] if found else None


def _mapping(node_type: str) -> str:
    return f"mapping/{node_type}_entidx2name.csv"


def _read_mapping(folder: Path, node_type: str) -> dict[str, str]:
    path = folder / _mapping(node_type)
    if not path.is_file():
        raise UserError(f"There is no file {path}, which gives the {node_type} nodes their names: export it too.")
    names: dict[str, str] = {}
    for place, (node, name) in _pairs(path):
        if node in names:
            raise UserError(f"{place}: the id {node!r} stands twice: give each node its own.")
        names[node] = name
    return names


def _pairs(path: Path) -> Iterator[tuple[str, tuple[str, str]]]:
    for number, cells in csv_lines(path, skipinitialspace=True):  # the exporter's own page writes "0, name"
        if len(cells) != 2 or not all(cells):
            raise UserError(f"{path}, line {number}: there should be two values, an id and another, not {cells}.")
        yield f"{path}, line {number}", (cells[0], cells[1])


# ---- ArtSeek ----


def _artseek_table(folder: Path, pictures: PictureFolder) -> ArtworkTable:
    table = ArtworkTable(str(folder))
    for file_name in ARTSEEK_FILES:
        path = folder / file_name
        if not path.is_file():
            raise UserError(f"There is no file {path}: an ArtSeek source holds {', '.join(ARTSEEK_FILES)}.")
        content = _read_artseek(path)
        for artwork, related in content["relationships"].items():
            place = f"{path}, artwork {artwork!r}"
            if not isinstance(related, dict):
                raise UserError(f"{place}: there should be lists of ids by label type, not {related!r}.")
            name = _node_name(content, "artwork", artwork, place) if "artwork" in content else artwork
            cells = {}
            for relation in RELATIONS:
                ids = related.get(relation.node_type)
                if not isinstance(ids, list | None):
                    raise UserError(f"{place}: {relation.node_type!r} should be a list of ids, not {ids!r}.")
                if relation.node_type in content:
                    cells[relation.task] = [_node_name(content, relation.node_type, node, place) for node in ids or ()]
            # Names come without the extension; one that has it is taken as it is.
            file = name if name.lower().endswith((".jpg", ".jpeg", ".png")) else f"{name}.jpg"
            table.add(place, name, pictures.path_of(file, place), split_name(path.stem, place), cells)
    return table


def _node_name(content: dict[str, Any], node_type: str, node: Any, place: str) -> str:
    name = content[node_type].get(str(node))
    if not isinstance(name, str) or not name:
        raise UserError(f"{place}: the map {node_type!r} gives the id {node!r} no name: add it.")
    return name


def _read_artseek(path: Path) -> dict[str, Any]:
    content = json_value(read_text(path), str(path))
    if not isinstance(content, dict) or not isinstance(content.get("relationships"), dict):
        raise UserError(f"{path} holds no object with the key 'relationships', which maps artworks to ids.")
    for node_type in (*(relation.node_type for relation in RELATIONS), "artwork"):
        if not isinstance(content.get(node_type, {}), dict):
            raise UserError(f"{path}: {node_type!r} should map ids to names: export it anew.")
    return content
