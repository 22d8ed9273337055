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

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from operator import itemgetter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from datasets import Dataset
from transformers.utils import logging

from ...errors import UserError, as_user_error
from ...model.tasks import Task
from .files import json_value, picture_in, read_csv, read_text
from .rows import SPLIT_NAMES, ArtworkTable, rows_of_table, split_name

if TYPE_CHECKING:
    from ..options import DataArguments

logger = logging.get_logger(__name__)

ARTGRAPH_CSV = "artgraph_dataset.csv"
SPLITS = ("train", "val", "test")  # the names of split files
# Of each task the type of its nodes, and the names that its edges have had.
RELATIONS = {
    "artist": ("artist", ("createdby", "author")),
    "style": ("style", ("hasstyle", "style")),
    "genre": ("genre", ("hasgenre", "genre")),
    "tags": ("tag", ("about",)),
    "media": ("media", ("madeof", "media")),
}
# How errors call it, its name, its file in the folder of pictures, its split, and what is in its columns.
Artwork = tuple[str, str, str, str | None, Mapping[str, Any]]


def is_artgraph(folder: Path, options: DataArguments) -> bool:
    is_raw = (folder / "mapping").is_dir() and (folder / "raw" / "relations").is_dir()
    # JSON files without pictures may well be a dataset of another form.
    is_artseek = any((folder / f"{split}.json").is_file() for split in SPLITS) and _images(folder, options).is_dir()
    return (folder / ARTGRAPH_CSV).is_file() or is_raw or is_artseek


def read_artgraph(
    folder: Path, options: DataArguments, tasks: Sequence[str | Task] | None
) -> tuple[Dataset, list[Task]]:
    """Raw rows of a folder in one of the forms, and their tasks."""
    images, split_of = _images(folder, options), None
    table = ArtworkTable(str(folder))
    if (folder / ARTGRAPH_CSV).is_file():
        table.where = str(folder / ARTGRAPH_CSV)
        artworks, split_of = _read_csv_export(folder / ARTGRAPH_CSV), _read_splits(folder / "splits")
    elif (folder / "mapping").is_dir():
        artworks, split_of = _read_raw(folder), _read_splits(folder / "splits")
    else:
        artworks = _read_artseek(folder)
    left_out = 0
    for place, name, file, split, cells in artworks:
        if split_of is not None:
            if split is not None:
                raise UserError(f"{table.where} has a column 'split' and there is a folder 'splits': keep one.")
            if name not in split_of:
                left_out += 1
                continue
            split = split_of[name]
        table.add(place, name, picture_in(images, file, place), split, cells)
    lost = set(split_of or ()) - set(table.names)
    if lost:
        raise UserError(f"{table.where} lacks {min(lost)!r}, which is in {folder / 'splits'}: take it out there.")
    if left_out:
        logger.warning("%s: %d artworks are in no split and are left out.", table.where, left_out)
    return rows_of_table(table, options, tasks)


def _images(folder: Path, options: DataArguments) -> Path:
    return Path(options.image_folder).expanduser() if options.image_folder is not None else folder / "images"


def _read_splits(folder: Path) -> dict[str, str] | None:
    if not folder.is_dir():
        return None
    split_of: dict[str, str] = {}
    for split in SPLITS:
        path = folder / f"{split}.txt"
        names = read_text(path).split("\n")  # str.splitlines would also cut at characters that a name may hold
        if not any(names):
            raise UserError(f"{path} is empty: name the artworks of the split, or take the folder away.")
        for line, name in enumerate(names, start=1):
            if name in split_of:
                raise UserError(f"{path}, line {line}: {name!r} is already in the split {split_of[name]!r}: keep one.")
            if name:
                split_of[name] = SPLIT_NAMES[split]
    return split_of


def _read_csv_export(path: Path) -> Iterator[Artwork]:
    for place, record in read_csv(path):
        if "image" not in record:
            raise UserError(f"{path} has no column 'image'; its columns are {', '.join(record)}.")
        split = split_name(record["split"], place) if "split" in record else None
        yield place, record["image"], record["image"], split, record


def _read_raw(folder: Path) -> Iterator[Artwork]:
    artworks = _read_mapping(folder, "artwork")
    labels: dict[str, dict[str, list[str]]] = {}
    for task, (node_type, relations) in RELATIONS.items():
        folders = [folder / "raw" / "relations" / f"artwork___{name}___{node_type}" for name in relations]
        folders = [edges for edges in folders if (edges / "edge.csv").is_file()]
        if len(folders) > 1:
            raise UserError(f"{folders[0]} and {folders[1]} both lead to the task {task!r}: keep one.")
        for edges in folders:
            names, labels[task] = _read_mapping(folder, node_type), {}
            for place, edge in read_csv(edges / "edge.csv", ("artwork", "label")):
                _name(artworks, edge["artwork"], "artwork", place)
                labels[task].setdefault(edge["artwork"], []).append(_name(names, edge["label"], node_type, place))
    for name, count in Counter(artworks.values()).items():
        if count > 1:
            raise UserError(f"{folder} has {count} artworks called {name!r}: a name leads to one picture, so rename.")
    for artwork, name in sorted(artworks.items(), key=itemgetter(1)):
        cells = {task: labels_of.get(artwork) for task, labels_of in labels.items()}
        yield f"{folder}: {name!r}", name, name, None, cells


def _read_mapping(folder: Path, node_type: str) -> dict[str, str]:
    names: dict[str, str] = {}
    for place, record in read_csv(folder / "mapping" / f"{node_type}_entidx2name.csv", ("id", "name")):
        if record["id"] in names:
            raise UserError(f"{place}: the id {record['id']!r} stands twice: give each node its own.")
        names[record["id"]] = record["name"]
    return names


def _read_artseek(folder: Path) -> Iterator[Artwork]:
    for split in SPLITS:
        path = folder / f"{split}.json"
        content = json_value(read_text(path), str(path))
        kinds = (KeyError, TypeError, ValueError, AttributeError)
        with as_user_error(f"{path} is not as ArtSeek writes it", "export it anew.", kinds):
            relationships = dict(content["relationships"])
            names = {kind: dict(content[kind]) for kind in ("artwork", *dict(RELATIONS.values())) if kind in content}
        for artwork, related in relationships.items():
            place = f"{path}, artwork {artwork!r}"
            name = _name(names["artwork"], artwork, "artwork", place) if "artwork" in names else artwork
            with as_user_error(f"{place} is not as ArtSeek writes it", "export it anew.", kinds):
                ids = {kind: list(related[kind]) for kind in names if related.get(kind) is not None}
            cells = {
                task: [_name(names[node_type], node, node_type, place) for node in ids.get(node_type, ())]
                for task, (node_type, _) in RELATIONS.items()
                if node_type in names
            }
            # Names come without the extension; one that has it is taken as it is.
            file = name if name.lower().endswith((".jpg", ".jpeg", ".png")) else f"{name}.jpg"
            yield place, name, file, SPLIT_NAMES[split], cells


def _name(names: Mapping[str, Any], node: Any, node_type: str, place: str) -> str:
    name = names.get(str(node))
    if not isinstance(name, str) or not name:
        raise UserError(f"{place}: no {node_type} with a name has the id {node!r}: add it.")
    return name
