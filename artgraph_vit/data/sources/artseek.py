"""ArtSeek's JSON form of ArtGraph: `{train,val,test}.json` and `images/<name>.jpg`.

Each file holds `relationships`, which maps an artwork's id to lists of label ids ("artist", "style", "genre", "tag",
"media"), and for each of these a map of ids to names; a map "artwork", where there is one, gives the artworks' names,
else their ids are.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from datasets import Dataset

from ...model.tasks import Task
from .files import PictureFolder, json_value, read_text
from .graph import RELATIONS
from .rows import SPLIT_NAMES, ArtworkTable, DataError, ReadingOptions, rows_of_table

FILES = ("train.json", "val.json", "test.json")


def is_artseek(folder: Path, images: Path | None = None) -> bool:
    """A folder without `images/` may well be a dataset in JSON of another form."""
    return any((folder / name).is_file() for name in FILES) and (images or folder / "images").is_dir()


def read_artseek(folder: Path, options: ReadingOptions, images: Path | None = None) -> tuple[Dataset, list[Task]]:
    """Raw rows of the three files, and their tasks.

    Raises:
        DataError: names the file, artwork and id that is wrong.
    """
    pictures = PictureFolder(images or folder / "images")
    table = ArtworkTable(str(folder), [], [], [], {})
    for file_name in FILES:
        path = folder / file_name
        if not path.is_file():
            raise DataError(f"There is no file {path}: an ArtSeek source holds {', '.join(FILES)}.")
        content = _read_json(path)
        for artwork, related in content["relationships"].items():
            where = f"{path}, artwork {artwork!r}"
            if not isinstance(related, dict):
                raise DataError(f"{where}: there should be lists of ids by label type, not {related!r}.")
            name = _name_of(content, "artwork", artwork, where) if "artwork" in content else artwork
            table.names.append(name)
            table.pictures.append(pictures.path_of(_file_name(name), where))
            table.splits.append(SPLIT_NAMES[path.stem])
            for relation in RELATIONS:
                if relation.node_type in content:
                    ids = related.get(relation.node_type)
                    ids = [] if ids is None else ids
                    if not isinstance(ids, list):
                        raise DataError(f"{where}: {relation.node_type!r} should be a list of ids, not {ids!r}.")
                    labels = [_name_of(content, relation.node_type, node, where) for node in ids]
                    cells = table.columns.setdefault(relation.task, [None] * (len(table.names) - 1))
                    cells.append(labels or None)
        for cells in table.columns.values():  # a file may lack a type that the others have
            cells.extend([None] * (len(table.names) - len(cells)))
    return rows_of_table(table, options)


def _file_name(name: str) -> str:
    """Names come without the extension; one that has it is taken as it is."""
    return name if name.lower().endswith((".jpg", ".jpeg", ".png")) else f"{name}.jpg"


def _name_of(content: dict[str, Any], node_type: str, node: Any, where: str) -> str:
    name = content[node_type].get(str(node))
    if not isinstance(name, str) or not name:
        raise DataError(f"{where}: the map {node_type!r} gives the id {node!r} no name: add it.")
    return name


def _read_json(path: Path) -> dict[str, Any]:
    content = json_value(read_text(path), str(path))
    if not isinstance(content, dict) or not isinstance(content.get("relationships"), dict):
        raise DataError(
            f"{path} holds no object with the key 'relationships', which maps artworks to ids: export it anew."
        )
    for relation in (*(relation.node_type for relation in RELATIONS), "artwork"):
        if not isinstance(content.get(relation, {}), dict):
            raise DataError(f"{path}: {relation!r} should map ids to names: export it anew.")
    return content
