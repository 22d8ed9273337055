"""`datasets` in the forms they come in: saved, in a folder, on a Hub; and what their paths may lead to."""

import io
import json
import pickle
import tarfile
import zipfile

import numpy as np
import pyarrow.parquet
import pytest
import yaml
from datasets import ClassLabel, Dataset, DatasetDict, Features, LargeList, List, Value
from datasets import Image as ImageFeature
from PIL import Image

from artgraph_vit.data import DataArguments, read_picture
from artgraph_vit.data.sources.datasets_source import read_datasets
from artgraph_vit.errors import UserError
from tests.data.loading import divided, load
from tests.made_pictures import encoded, noise


def hub_dataset(rows: int = 6, **columns) -> Dataset:
    """A dataset with one column of pictures and those given: name=(feature, values)."""
    pictures = [Image.new("RGB", (4, 4), (10 * i, 0, 0)) for i in range(rows)]
    features = Features({"image": ImageFeature(), **{name: feature for name, (feature, _) in columns.items()}})
    values = {name: values for name, (_, values) in columns.items()}
    return Dataset.from_dict({"image": pictures, **values}, features=features)


def load_saved(dataset: Dataset | DatasetDict, folder, **options):
    dataset.save_to_disk(str(folder / "saved"))
    return load(folder / "saved", **options)


OPTIONS = DataArguments("here")
PNG = encoded(noise(4), "PNG")["bytes"]
GENRE = ClassLabel(names=["landscape", "portrait", "Unknown Genre"])
TAG = ClassLabel(names=["Tree", "sea"])


def test_class_labels_strings_and_lists_are_read_as_names(tmp_path):
    dataset = hub_dataset(
        artist=(Value("string"), ["ada", None, "", "Bea", "ada", "ada"]),
        genre=(GENRE, [1, 0, None, -1, 2, 0]),
        tags=(List(TAG), [[0, 1], [], None, [1, 1], [0], [1]]),
        media=(List(Value("string")), [["oil", "panel"], [], None, ["?"], ["oil", "oil"], ["oil", None]]),
    )
    rows, tasks = load_saved(dataset, tmp_path, unknown_labels=["Unknown Genre", "?"])
    assert [task.name for task in tasks] == ["artist", "genre", "tags", "media"]
    assert rows["artist"][:] == ["ada", None, None, "Bea", "ada", "ada"]
    assert rows["genre"][:] == ["portrait", "landscape", None, None, None, "landscape"]
    assert rows["tags"][:] == [["Tree", "sea"], None, None, ["sea"], ["Tree"], ["sea"]]
    assert rows["media"][:] == [["oil", "panel"], None, None, None, ["oil"], ["oil"]]
    assert rows["split"][:] == [None] * 6
    assert len(set(rows["name"])) == 6
    assert read_picture(rows[3]["image"]).getpixel((0, 0)) == (30, 0, 0)


STRING = Value("string")
KNOWN = {"genre": (GENRE, [0] * 6)}


@pytest.mark.parametrize(
    ("columns", "options", "message"),
    [
        ({"title": (STRING, ["x"] * 6)}, {}, "has none of the columns artist, style"),
        (KNOWN, {"tasks": ["artist"]}, "the dataset has no column 'artist' for the task 'artist'"),
        (KNOWN, {"image_column": "photo"}, "has no column 'photo'; its columns .*image_column"),
        (KNOWN, {"image_column": "genre"}, "'genre' of the dataset holds ClassLabel.*, no pictures"),
        ({"genre": (Value("bool"), [True] * 6)}, {}, "the dataset, row 0: the genre True is no text, nor a list"),
        ({"genre": (List(GENRE), [[0], [0, 1]] * 3)}, {}, "row 1 has 2 labels for the task 'genre', which has one"),
        (KNOWN, {"tasks": ["name"], "columns": {"name": "genre"}}, "A task cannot be called 'name'"),
        (KNOWN | {"split": (STRING, ["train"] * 5 + ["dev"])}, {}, "row 5: the split 'dev' is none of train"),
        (KNOWN | {"split": (GENRE, [0, None] * 3)}, {}, "the split 'landscape' is none of train, val"),
        (KNOWN | {"split": (STRING, [None] * 6)}, {}, "row 0: the split None is none of train, val"),
    ],
)
def test_a_dataset_with_a_wrong_column_is_refused(tmp_path, columns, options, message):
    with pytest.raises(UserError, match=message):
        load_saved(hub_dataset(**columns), tmp_path, **options)


def parts_of(dataset: Dataset, **rows) -> DatasetDict:
    return DatasetDict({name: dataset.select(indices) for name, indices in rows.items()})


def test_the_parts_of_a_dataset_are_its_splits(tmp_path):
    dataset = hub_dataset(genre=(GENRE, [0, 1] * 3))
    rows, _ = load_saved(parts_of(dataset, train=[0, 1, 2], validation=[3], test=[4, 5]), tmp_path)
    assert rows["split"][:] == ["train"] * 3 + ["validation"] + ["test"] * 2
    lone, _ = read_datasets(DatasetDict({"train": dataset}), OPTIONS)
    assert lone["split"][:] == ["train"] * 6  # of which the others are cut later


def test_wrong_parts_are_refused():
    dataset = hub_dataset(genre=(GENRE, [0, 1] * 3), style=(STRING, ["rococo"] * 6))
    lacks = DatasetDict({"train": dataset, "test": dataset.remove_columns("style")})
    typed = DatasetDict({"train": dataset, "test": dataset.cast_column("genre", STRING)})
    for parts, message in (
        (parts_of(dataset, extra=[0, 1]), "the dataset: the split 'extra' is none of train, val, valid"),
        (parts_of(dataset, train=[0, 1, 2], validation=[3], test=[2, 5]), "is in two splits, 'train' and 'test'"),
        (parts_of(dataset, train=[0, 1, 2], validation=[3], test=[]), "split 'test' of the dataset is empty"),
        (lacks, "The splits of the dataset do not have the same columns: make them alike"),
        (typed, "The splits of the dataset cannot be joined .* give their columns the same types"),
    ):
        with pytest.raises(UserError, match=message):
            divided(read_datasets(parts, OPTIONS)[0])


@pytest.mark.parametrize(
    ("feature", "values"),
    [
        (STRING, ["train", "val", "test", "valid", "validation", "train"]),
        (ClassLabel(names=["test", "val", "train"]), [2, 1, 0, 1, 1, 2]),
    ],
)
def test_a_split_column_is_read_in_a_lone_part_too(feature, values):
    dataset = hub_dataset(genre=(GENRE, [0] * 6), split=(feature, values))
    for whole in (dataset, DatasetDict({"train": dataset})):
        rows, _ = read_datasets(whole, OPTIONS)
        assert rows["split"][:] == ["train", "validation", "test", "validation", "validation", "train"]


def write_parquet(folder, path, data=None):
    """A dataset of two rows whose second picture is as given, written without `datasets`, which would read it."""
    folder.mkdir(parents=True, exist_ok=True)
    pyarrow.parquet.write_table(parquet_table(path, data), folder / "train.parquet")
    return folder


def parquet_table(path, data=None):
    rows = [{"bytes": PNG, "path": "/etc/hostname"}, {"bytes": data, "path": path}]
    pictures = pyarrow.array(rows, pyarrow.struct({"bytes": pyarrow.binary(), "path": pyarrow.string()}))
    features = Features({"image": ImageFeature(), "genre": Value("string")})
    info = json.dumps({"info": {"features": features.to_dict()}})
    return pyarrow.table({"image": pictures, "genre": ["x", "y"]}).replace_schema_metadata({"huggingface": info})


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("/etc/passwd", "'/etc/passwd' lies outside"),
        ("{folder}/../secret.png", "lies outside"),
        ("{folder}/link.png", "lies outside"),
        ("{folder}/none.png", "there is no picture"),
        ("http://example.org/a.png", "is an address, and readers fetch nothing"),
        ("a\0.png", "cannot be looked up"),
        (None, "has no picture"),
    ],
)
def test_a_path_in_the_data_leads_to_a_file_in_its_folder(tmp_path, path, message):
    folder = tmp_path / "data"
    (tmp_path / "secret.png").touch()
    write_parquet(folder, path and path.replace("{folder}", str(folder)))
    (folder / "link.png").symlink_to(tmp_path / "secret.png")
    with pytest.raises(UserError, match=message) as error:
        load(folder)
    assert "Row 1 of the dataset" in str(error.value)


def test_paths_in_a_column_of_strings(tmp_path):
    (tmp_path / "data").mkdir()
    Image.new("RGB", (4, 4)).save(tmp_path / "data" / "a.png")
    lines = [f"{tmp_path}/data/a.png,x", "/etc/passwd,y"]
    (tmp_path / "data" / "train.csv").write_text("\n".join(["image,genre", *lines]))
    with pytest.raises(UserError, match="Row 1 of the dataset: the picture '/etc/passwd' lies outside"):
        load(tmp_path / "data")
    (tmp_path / "data" / "train.csv").write_text("\n".join(["image,genre", lines[0]]))
    assert read_picture(load(tmp_path / "data")[0][0]["image"]).size == (4, 4)


def test_a_saved_dataset_names_files_anywhere_but_no_addresses(tmp_path):
    Image.new("RGB", (4, 4)).save(tmp_path / "a.png")
    features = Features({"image": ImageFeature(), "genre": Value("string")})
    paths = [str(tmp_path / "a.png")]
    for path, message in (
        ("https://example.org/a.png", "Row 1 .* is an address, and readers fetch nothing"),
        (str(tmp_path / "none.png"), "Row 1 .* there is no picture"),
        ("/dev/zero", "there is no picture /dev/zero"),
    ):
        dataset = Dataset.from_dict({"image": [*paths, path], "genre": ["x", "y"]}, features=features)
        with pytest.raises(UserError, match=message):
            read_datasets(dataset, OPTIONS)
    dataset = Dataset.from_dict({"image": paths, "genre": ["x"]}, features=features)
    assert read_picture(load_saved(dataset, tmp_path)[0][0]["image"]).size == (4, 4)


def test_pictures_in_an_archive_are_not_read(tmp_path):
    (tmp_path / "data").mkdir()
    with zipfile.ZipFile(tmp_path / "data" / "train.zip", "w") as archive:
        archive.writestr("0.png", PNG)
        archive.writestr("metadata.csv", "file_name,genre\n0.png,x\n")
    with pytest.raises(UserError, match=r"Row 0 of the dataset: the picture 'zip://0.png.* unpack it"):
        load(tmp_path / "data")


@pytest.mark.parametrize(
    "data_files",
    [
        "hf://datasets/huggan/wikiart/data.parquet",
        "../elsewhere/*.parquet",
        "/etc/*",
        [{"split": "train", "path": ["train.parquet", "s3://bucket/train.parquet"]}],
    ],
)
@pytest.mark.parametrize("card", ["README.md", ".huggingface.yaml"])
def test_a_card_that_names_data_files_elsewhere(tmp_path, data_files, card):
    folder = tmp_path / "data"
    write_parquet(folder, None)
    text = yaml.safe_dump({"configs": [{"config_name": "default", "data_files": data_files}]})
    (folder / card).write_text(f"---\n{text}---\n" if card == "README.md" else text)
    with pytest.raises(UserError, match=f"{card} names data files that lie outside"):
        load(folder)


def test_a_card_that_names_its_own_data_files_and_paths_in_its_folder(tmp_path):
    folder = write_parquet(tmp_path / "data", str(tmp_path / "data" / "b.png"))
    Image.new("RGB", (5, 5)).save(folder / "b.png")
    (folder / "README.md").write_text("---\nconfigs:\n- config_name: default\n  data_files: train.parquet\n---\n")
    rows, _ = load(folder)
    assert rows["genre"][:] == ["x", "y"]
    assert [read_picture(row["image"]).size for row in rows] == [(4, 4), (5, 5)]  # the first is in the data
    (folder / "README.md").write_text("---\nconfigs: [\n---\n")
    with pytest.raises(UserError, match=r"README\.md"):
        load(folder)


class Boobytrap:
    """Leaves a file where it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


@pytest.mark.parametrize("name", ["train.pkl", "train.bin"])
def test_nothing_is_unpickled(tmp_path, name):
    folder = tmp_path / "data"
    folder.mkdir()
    (folder / name).write_bytes(pickle.dumps(Boobytrap(tmp_path / "sprung")))
    with pytest.raises(UserError, match="cannot be read as a dataset"):
        load(folder)
    write_parquet(folder, None)  # and beside data that can be read
    with pytest.raises(UserError, match="has no picture"):
        load(folder)
    assert not (tmp_path / "sprung").exists()


@pytest.mark.parametrize("extension", ["pkl", "pyd", "pth", "npy"])
def test_nothing_is_unpickled_from_an_archive(tmp_path, extension):
    (tmp_path / "data").mkdir()
    trap = pickle.dumps(Boobytrap(tmp_path / "sprung"))
    if extension == "npy":
        buffer = io.BytesIO()
        np.save(buffer, np.array([Boobytrap(tmp_path / "sprung")], dtype=object), allow_pickle=True)
        trap = buffer.getvalue()
    with tarfile.open(tmp_path / "data" / "train.tar", "w") as archive:
        for name, data in (("0.png", PNG), (f"0.{extension}", trap)):
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    with pytest.raises(UserError):
        load(tmp_path / "data")
    assert not (tmp_path / "sprung").exists()


def test_a_script_is_not_run(tmp_path):
    folder = write_parquet(tmp_path / "data", None)
    (folder / "data.py").write_text(f"open({str(tmp_path / 'sprung')!r}, 'w')\n")
    with pytest.raises(UserError, match=r"cannot be read as a dataset \(Dataset scripts are no longer supported"):
        load(folder)
    assert not (tmp_path / "sprung").exists()


@pytest.mark.parametrize("name", ["train.parquet", "train.arrow", "train.json", "train.csv"])
def test_a_file_that_is_not_what_its_name_says(tmp_path, name):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / name).write_bytes(b"\x89\xffnothing of the kind" * 10)
    with pytest.raises(UserError, match="cannot be read as a dataset"):
        load(tmp_path / "data")


@pytest.mark.parametrize("damage", ["state.json", "dataset_info.json", "data-00000-of-00001.arrow"])
def test_a_damaged_saved_dataset(tmp_path, damage):
    hub_dataset(genre=(GENRE, [0] * 6)).save_to_disk(str(tmp_path / "saved"))
    (tmp_path / "saved" / damage).write_text("[")
    with pytest.raises(UserError, match=r"The dataset saved in .*saved cannot be read"):
        load(tmp_path / "saved")


def test_lists_strings_and_numbers_as_other_programs_write_them():
    """Large types as polars and pandas have them, labels joined in a string, and whole numbers."""
    dataset = hub_dataset(
        genre=(Value("large_string"), ["x", "y", None] * 2),
        tags=(LargeList(Value("large_string")), [["a", "b"], [], None] * 2),
        media=(STRING, ["a|b", "c", "", None, "a, b", '["d", "e|f"]']),
        year=(Value("float64"), [1900, None, 1900.5] * 2),
    )
    rows, _ = read_datasets(dataset, DataArguments("here", label_separator="|"), ["genre", "tags", "media", "year"])
    assert rows["genre"][:] == ["x", "y", None] * 2
    assert rows["tags"][:] == [["a", "b"], None, None] * 2
    assert rows["media"][:] == [["a", "b"], ["c"], None, None, ["a, b"], ["d", "e|f"]]
    assert rows["year"][:] == ["1900", None, "1900.5"] * 2
    assert read_datasets(dataset, OPTIONS, ["media"])[0]["media"][4] == ["a", "b"]  # by default, as in files


def test_a_number_that_is_none_of_the_names(tmp_path):
    dataset = hub_dataset(genre=(Value("int64"), [0, 1, 7, 0, 0, 0]))
    dataset._info.features["genre"] = GENRE  # as a dataset says that was not written by `datasets`
    with pytest.raises(UserError, match="the dataset, row 2: the label 7 is none of the 3 names"):
        read_datasets(dataset, OPTIONS)


# From a Hub

PUSH = """
import io
import numpy as np
from datasets import ClassLabel, Dataset, Features, Image
from PIL import Image as Picture

def pictures(count):
    return [Picture.new("RGB", (4, 4), (index, 0, 0)) for index in range(count)]

artists = ["Unknown Artist", *(f"artist-{index:03}" for index in range(128))]
artists[49] = "joaqu\u00e3\u00adn-sorolla"
genres = [*(f"genre_{index}" for index in range(10)), "Unknown Genre"]
styles = [f"Style_{index}" for index in range(27)]
features = Features({
    "image": Image(), "artist": ClassLabel(names=artists), "genre": ClassLabel(names=genres),
    "style": ClassLabel(names=styles),
})
count = 129
Dataset.from_dict({
    "image": pictures(count), "artist": list(range(count)), "genre": [index % 11 for index in range(count)],
    "style": [index % 27 for index in range(count)],
}, features=features).push_to_hub("huggan/wikiart", token="hf_huggan")
import pyarrow.parquet
from huggingface_hub import HfApi
from tests.data.sources.test_datasets_source import parquet_table
picture = io.BytesIO()
Picture.new("RGB", (4, 4)).save(picture, "PNG")
for name, path in (("passwd", "/etc/passwd"), ("address", "http://192.0.2.1/a.png")):
    buffer = io.BytesIO()
    pyarrow.parquet.write_table(parquet_table(path), buffer)
    HfApi().create_repo(f"tester/{name}", repo_type="dataset")
    HfApi().upload_file(path_or_fileobj=buffer.getvalue(), path_in_repo="train.parquet", repo_id=f"tester/{name}",
                        repo_type="dataset")
HfApi().create_repo("tester/folder", repo_type="dataset")
for index in range(2):
    HfApi().upload_file(path_or_fileobj=picture.getvalue() + bytes(index), path_in_repo=f"{index}.png",
                        repo_id="tester/folder", repo_type="dataset")
HfApi().upload_file(path_or_fileobj=b"file_name,genre\\n0.png,x\\n1.png,y\\n", path_in_repo="metadata.csv",
                    repo_id="tester/folder", repo_type="dataset")
"""
LOAD = """
from artgraph_vit.data import build_vocabulary, encode_labels, read_picture
from artgraph_vit.errors import UserError
from tests.data.loading import divided, load
for name, options in sources:
    try:
        rows, tasks = load(name, **options)
        results[name] = {task.name: rows[task.name][:] for task in tasks}
        results[name]["split"] = rows["split"][:]
        results[name]["sizes"] = [read_picture(row["image"]).size for row in rows]
        results[name]["pixel"] = read_picture(rows[1]["image"]).getpixel((0, 0))[0]
        if name == "huggan/wikiart":
            tasks = build_vocabulary(rows, tasks, min_count=1)
            results["labels"] = {task.name: task.labels for task in tasks}
            splits = divided(encode_labels(rows, tasks))
            results["lengths"] = {name: len(part) for name, part in splits.items()}
    except UserError as error:
        results[name] = str(error)
"""


@pytest.mark.slow
def test_datasets_of_the_hub(hub):
    sources = [("huggan/wikiart", {}), *((f"tester/{n}", {}) for n in HUB_OTHERS)]
    results = hub.run(PUSH + LOAD, sources=sources)
    assert hub.server.unknown_requests == []

    wikiart = results["huggan/wikiart"]
    assert isinstance(wikiart, dict), wikiart
    assert list(wikiart) == ["artist", "style", "genre", "split", "sizes", "pixel"]
    assert (wikiart["artist"][0], wikiart["artist"][1]) == (None, "artist-000")
    assert wikiart["artist"][49] == "joaquín-sorolla"
    assert [index for index, genre in enumerate(wikiart["genre"]) if genre is None] == list(range(10, 129, 11))
    assert wikiart["style"][28] == "Style_1"
    assert set(wikiart["split"]) == {"train"}
    assert wikiart["pixel"] == 1
    labels = results["labels"]
    assert {name: len(names) for name, names in labels.items()} == {"artist": 128, "style": 27, "genre": 10}
    assert labels["artist"] == sorted(labels["artist"])
    assert results["lengths"] == {"train": 90, "validation": 20, "test": 19}

    assert results["tester/folder"]["genre"] == ["x", "y"]  # files in the cache of the Hub
    assert "Row 1 of the dataset: the picture '/etc/passwd' lies outside" in results["tester/passwd"]
    assert "'http://192.0.2.1/a.png' is an address, and readers fetch nothing" in results["tester/address"]
    assert "doesn't exist on the Hub" in results["tester/none"]


HUB_OTHERS = ("folder", "passwd", "address", "none")
