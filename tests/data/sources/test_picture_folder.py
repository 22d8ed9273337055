"""A folder of pictures with a metadata file, or one for each split."""

import json

import pyarrow
import pyarrow.parquet
import pytest

from artgraph_vit.data import read_picture
from artgraph_vit.errors import UserError
from tests.data.loading import divided, load

NAMES = ['a, "b"_train.png', "zoë_静物.png", "my_test/val_1.png", "train"]


@pytest.fixture
def folder_with(tmp_path, make_pictures):
    """`folder_with(text, file, names)`: pictures, and a metadata file of that text."""

    def write(text: str, file: str = "metadata.jsonl", names=NAMES):
        folder = make_pictures(tmp_path / "pictures", names)
        (folder / file).write_text(text, encoding="utf-8", newline="")
        return folder

    return write


def lines(*records) -> str:
    return "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records)


def test_names_of_all_kinds_make_no_splits(folder_with):
    rows, _ = load(folder_with(lines(*({"file_name": name, "genre": "x"} for name in NAMES))))
    assert rows["name"][:] == NAMES
    assert rows["split"][:] == [None] * 4  # the names do not depend on where the folder is, so nor do made splits
    assert all(read_picture(row["image"]).size == (4, 4) for row in rows)


def test_metadata_in_csv(folder_with):
    text = 'file_name,genre,tags,title\r\n"a, ""b""_train.png",x,"[""Tree"", ""a, b""]",T\r\n'
    text += 'zoë_静物.png,,"sea, sky",\r\n'
    rows, tasks = load(folder_with(text, "metadata.csv"))
    assert [task.name for task in tasks] == ["genre", "tags"]
    assert rows["name"][:] == NAMES[:2]
    assert rows["genre"][:] == ["x", None]
    assert rows["tags"][:] == [["Tree", "a, b"], ["sea", "sky"]]


def test_metadata_in_parquet(folder_with):
    folder = folder_with("", "notes.txt")
    table = {"file_name": NAMES[:3], "genre": [1.0, float("nan"), 2.0], "tags": [["a", None], [], None]}
    pyarrow.parquet.write_table(pyarrow.table(table), folder / "metadata.parquet")
    rows, _ = load(folder)
    assert rows["genre"][:] == ["1", None, "2"]  # as pandas writes whole numbers beside a missing one
    assert rows["tags"][:] == [["a"], None, None]
    (folder / "metadata.parquet").write_bytes(b"PAR1 nothing")
    with pytest.raises(UserError, match=r"metadata\.parquet cannot be read .*: write it anew"):
        load(folder)


def test_separators_of_lines_that_are_none(folder_with):
    """JSON leaves U+2028 as it is, where `str.splitlines` would cut."""
    rows, _ = load(folder_with(lines({"file_name": NAMES[0], "artist": "a\u2028b\x85c"})))
    assert rows["artist"][:] == ["a\u2028b\x85c"]


def test_columns_that_some_lines_lack(folder_with):
    text = lines(
        {"file_name": NAMES[0], "genre": "x"},
        {"file_name": NAMES[1], "tags": ["a"], "year": 1900},
        {"file_name": NAMES[2], "year": None, "genre": "y"},
    )
    folder = folder_with(text)
    rows, _ = load(folder)
    assert (rows["genre"][:], rows["tags"][:]) == (["x", None, "y"], [None, ["a"], None])
    assert load(folder, ["year"])[0]["year"][:] == [None, "1900", None]


@pytest.mark.parametrize("validation", ["val", "valid", "validation"])
def test_split_folders(tmp_path, make_pictures, validation):
    names = {"train": ["test_1.png", "sub/2.png"], validation: ["train_3.png"], "test": ["val_4.png"]}
    folder = tmp_path / "pictures"
    for split, inside in names.items():
        make_pictures(folder / split, inside)
        text = lines(*({"file_name": name, "genre": "x"} for name in inside))
        (folder / split / "metadata.jsonl").write_text(text)
    expected = {
        "train/test_1.png": "train",
        "train/sub/2.png": "train",
        f"{validation}/train_3.png": "validation",
        "test/val_4.png": "test",
    }
    rows, _ = load(folder)
    assert dict(zip(rows["name"], rows["split"], strict=True)) == expected
    for split in names:
        (folder / split / "metadata.jsonl").unlink()
    (folder / "metadata.jsonl").write_text(lines(*({"file_name": name, "genre": "x"} for name in expected)))
    rows, _ = load(folder)  # one file for all
    assert dict(zip(rows["name"], rows["split"], strict=True)) == expected


def test_a_split_folder_without_metadata(tmp_path, make_pictures):
    for split in ("train", "test"):
        make_pictures(tmp_path / "pictures" / split, ["1.png"])
    (tmp_path / "pictures" / "train" / "metadata.csv").write_text("file_name,genre\n1.png,x\n")
    with pytest.raises(UserError, match=r"pictures/test has no metadata file, and other splits have one: add it"):
        load(tmp_path / "pictures")


def test_a_split_column(folder_with):
    splits = ["train", "val", "test", "validation"]
    text = lines(*({"file_name": n, "genre": "x", "split": s} for n, s in zip(NAMES, splits, strict=True)))
    assert load(folder_with(text))[0]["split"][:] == ["train", "validation", "test", "validation"]


def test_a_file_named_twice_by_other_ways_is_one_picture(folder_with):
    text = lines(
        {"file_name": "my_test/../train", "genre": "x", "split": "train"},
        {"file_name": "./train", "genre": "x", "split": "test"},
        {"file_name": NAMES[0], "genre": "x", "split": "val"},
    )
    rows, _ = load(folder_with(text))
    assert rows["name"][:] == ["train", "train", NAMES[0]]
    with pytest.raises(UserError, match="The artwork 'train' is in two splits"):
        divided(rows)


GOOD = {"file_name": NAMES[0], "genre": "x"}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "has no rows"),
        (lines(GOOD) + "{", "metadata.jsonl, line 2 is not valid JSON"),
        (lines(GOOD, [1]), "line 2: there is no 'file_name', which names the picture: add it"),
        (lines(GOOD, {"genre": "x"}), "line 2: there is no 'file_name', which names the picture: add it"),
        (lines(GOOD, {"file_name": ""}), "line 2: there is no 'file_name'"),
        (lines(GOOD, {"file_name": "out/secret.png"}), "line 2: .* lies outside"),
        (lines(GOOD, {"file_name": "https://example.org/a.png"}), "line 2: .* is an address, and readers fetch"),
        ('{"file_name": "a\\ud800"}', "line 1: .* cannot be looked up"),
        ('{"file_name": "train", "genre": "a\\ud800"}', "holds half a character .*surrogates.*: correct it"),
        (lines(GOOD, {**GOOD, "split": "dev"}), "line 2: the split 'dev' is none of train, val"),
        (lines(GOOD, {**GOOD, "split": ["train"]}), "line 2: the split .'train'. is none of"),
        (lines(GOOD, {**GOOD, "split": "test"}), "some pictures are in a split, and 'a, .* is in none"),
    ],
)
def test_wrong_metadata(folder_with, tmp_path, text, message):
    folder = folder_with(text)
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "secret.png").touch()
    (folder / "out").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(UserError, match=message) as error:
        load(folder)
    assert str(folder) in str(error.value)


def test_two_metadata_files_for_a_picture(folder_with):
    folder = folder_with(lines(GOOD))
    (folder / "metadata.csv").write_text("file_name\n")
    with pytest.raises(UserError, match=r"metadata\.csv, .*metadata\.jsonl: keep one for each picture"):
        load(folder)
