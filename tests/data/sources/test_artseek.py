"""ArtSeek's JSON form of ArtGraph, with all kinds of wrong JSON."""

import json

import pytest

from artgraph_vit.data import read_picture
from artgraph_vit.errors import UserError
from tests.data.loading import load

NODES = {
    "artist": {"10": "zoë", "11": 'b, "the elder"'},
    "style": {"20": "rococo"},
    "genre": {"0": "portrait", "31": "still life"},
    "tag": {"40": "Tree", "41": "sea, sky"},
    "media": {"50": "oil"},
}
RELATED = {
    "train": {"1": {"artist": [10], "style": [20], "genre": [0], "tag": [40, 41, 40], "media": [50]}},
    "val": {"train_2": {"artist": [11], "genre": [31]}, "zoë_静物": {"genre": ["0"], "tag": [], "media": None}},
    "test": {'val, "test"': {"style": [20]}},
}


@pytest.fixture
def artseek_folder(tmp_path, make_pictures):
    """`artseek_folder(train=..., val=..., test=...)`: the content of a file, or its text, in place of a good one."""

    def write(**given):
        names = [f"{name}.jpg" for related in RELATED.values() for name in related]
        folder = make_pictures(tmp_path / "artseek" / "images", names).parent
        for split, related in RELATED.items():
            content = given.get(split, {"relationships": related, **NODES})
            text = content if isinstance(content, str) else json.dumps(content)
            (folder / f"{split}.json").write_text(text, encoding="utf-8")
        return folder

    return write


def test_the_three_files_are_read(artseek_folder):
    rows, tasks = load(artseek_folder())
    assert [task.name for task in tasks] == ["artist", "style", "genre", "tags", "media"]
    assert rows["name"][:] == ["1", "train_2", "zoë_静物", 'val, "test"']
    assert rows["split"][:] == ["train", "validation", "validation", "test"]
    assert rows["artist"][:] == ["zoë", 'b, "the elder"', None, None]
    assert rows["style"][:] == ["rococo", None, None, "rococo"]
    assert rows["genre"][:] == ["portrait", "still life", "portrait", None]
    assert rows["tags"][:] == [["Tree", "sea, sky"], None, None, None]
    assert rows["media"][:] == [["oil"], None, None, None]
    assert all(read_picture(row["image"]).size == (4, 4) for row in rows)


@pytest.mark.parametrize("extension", ["", ".jpg"])
def test_a_map_names_the_artworks(artseek_folder, make_pictures, tmp_path, extension):
    content = {
        split: {
            "relationships": {str(index): {"genre": [0]}},
            "artwork": {str(index): f"zoë_{split}{extension}" for index in range(3)},
            **NODES,
        }
        for index, split in enumerate(RELATED)
    }
    folder = artseek_folder(**content)
    make_pictures(tmp_path / "disk", [f"zoë_{split}.jpg" for split in RELATED])
    rows, _ = load(folder, image_folder=tmp_path / "disk")
    assert rows["name"][:] == [f"zoë_{split}{extension}" for split in RELATED]


def test_types_that_files_lack(artseek_folder):
    less = {key: value for key, value in NODES.items() if key not in ("style", "media")}
    folder = artseek_folder(train={"relationships": {"1": {"genre": [0]}}, **less})
    rows, tasks = load(folder)
    assert rows["style"][:] == [None, None, None, "rococo"]
    assert len(tasks) == 5
    genre_only = {split: {"relationships": rel, "genre": NODES["genre"]} for split, rel in RELATED.items()}
    for split, content in genre_only.items():
        (folder / f"{split}.json").write_text(json.dumps(content), encoding="utf-8")
    assert [task.name for task in load(folder)[1]] == ["genre"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "is not valid JSON"),
        ('{"relationships": {}', "is not valid JSON"),
        ("[" * 100_000, "is not valid JSON"),
        ("[]", "is not as ArtSeek writes it .*: export it anew"),
        ({"relationships": [1]}, "is not as ArtSeek writes it .*: export it anew"),
        ({"relationships": {"1": {}}, "tag": ["Tree"]}, "train.json is not as ArtSeek writes it"),
        ({"relationships": {"1": {}}, "artwork": 5}, "train.json is not as ArtSeek writes it"),
        ({"relationships": {"1": [10]}, **NODES}, "artwork '1' is not as ArtSeek writes it"),
        ({"relationships": {"1": {"tag": 40}}, **NODES}, "artwork '1' is not as ArtSeek writes it .*: export it anew"),
        ({"relationships": {"1": {"tag": [99]}}, **NODES}, "artwork '1': no tag with a name has the id 99: add it"),
        ({"relationships": {"1": {"tag": [[40]]}}, **NODES}, "no tag with a name has the id .40."),
        ({"relationships": {"1": {"tag": [40]}}, **NODES, "tag": {"40": ["Tree"]}}, "no tag with a name has the id"),
        ({"relationships": {"1": {"tag": [40]}}, **NODES, "tag": {"40": "a\ud800"}}, "holds half a character"),
        ({"relationships": {"1": {}}, **NODES, "artwork": {"2": "b"}}, "no artwork with a name has the id '1'"),
        ({"relationships": {"1": {"artist": [10, 11]}}, **NODES}, "'1' has 2 labels for the task 'artist'"),
        ({"relationships": {"../train": {}}, **NODES}, "artwork '../train': .* lies outside"),
        ({"relationships": {"a\ud800": {}}, **NODES}, "cannot be looked up"),
    ],
)
def test_wrong_json(artseek_folder, content, message):
    folder = artseek_folder(train=content)
    with pytest.raises(UserError, match=message) as error:
        load(folder)
    assert str(folder) in str(error.value)


def test_another_encoding_and_a_file_that_is_not_there(artseek_folder):
    folder = artseek_folder()
    (folder / "val.json").write_bytes(json.dumps({"relationships": {}}).encode("utf-16"))
    with pytest.raises(UserError, match=r"val\.json cannot be read as text in UTF-8"):
        load(folder)
    (folder / "val.json").unlink()
    with pytest.raises(UserError, match=r"val\.json cannot be read .*No such file"):
        load(folder)
