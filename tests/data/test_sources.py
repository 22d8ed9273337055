"""Reading artworks: the ArtGraph csv with all that can be wrong in it, and `datasets` in the forms they come in."""

import json
import os

import datasets
import pytest
from datasets import ClassLabel, Dataset, DatasetDict, Features, List, Value
from datasets import Image as ImageFeature
from PIL import Image

from artgraph_vit.data import DataError, load_artworks, read_picture, split_artworks
from artgraph_vit.data.sources.hub import read_datasets
from artgraph_vit.data.sources.rows import ReadingOptions

HEADER = "image,artist,style,genre,tags,media\n"


# ArtGraph's csv


def test_a_row_holds_the_names_of_its_labels_and_none_for_unknown(artgraph_folder):
    folder = artgraph_folder(
        [
            {"image": "a.jpg", "artist": "ada", "genre": "portrait", "tags": "Tree, sea", "media": "oil"},
            {"image": "b.jpg", "style": "rococo"},
        ]
    )
    rows, tasks = load_artworks(folder)
    assert [task.name for task in tasks] == ["artist", "style", "genre", "tags", "media"]
    assert rows["artist"][:] == ["ada", None]
    assert rows["style"][:] == [None, "rococo"]
    assert rows["tags"][:] == [["Tree", "sea"], None]
    assert rows["media"][:] == [["oil"], None]
    assert rows["split"][:] == [None, None]
    assert rows["name"][:] == ["a.jpg", "b.jpg"]
    assert read_picture(rows[0]["image"]).size == (4, 4)


def test_quotes_commas_letters_and_repeated_tags(artgraph_folder):
    folder = artgraph_folder(
        text=HEADER + '"a, b.jpg","Müller, Ñ ""the elder""",style,still,"Tree, 静物, Tree, tree","oil,on panel"\n',
        pictures=["a, b.jpg"],
    )
    row = load_artworks(folder)[0][0]
    assert row["name"] == "a, b.jpg"
    assert row["artist"] == 'Müller, Ñ "the elder"'  # only a cell with several labels is cut
    assert row["tags"] == ["Tree", "静物", "tree"]
    assert row["media"] == ["oil,on panel"]  # labels are joined by ", ", not by ","


def test_names_that_mean_unknown_become_none(artgraph_folder):
    folder = artgraph_folder([{"image": "a.jpg", "artist": "Unknown Artist", "tags": "?, Tree", "media": "?"}])
    row = load_artworks(folder, unknown_labels=["Unknown Artist", "?"])[0][0]
    assert (row["artist"], row["tags"], row["media"]) == (None, ["Tree"], None)


def test_tasks_and_columns_choose_what_is_read(artgraph_folder):
    folder = artgraph_folder(text="image,painter,tags\na.jpg,ada,Tree\n", pictures=["a.jpg"])
    assert [task.name for task in load_artworks(folder)[1]] == ["tags"]
    rows, tasks = load_artworks(folder, tasks=["artist"], columns={"artist": "painter"})
    assert [task.name for task in tasks] == ["artist"]
    assert rows["artist"][:] == ["ada"]
    rows, tasks = load_artworks(folder, tasks=["painter"])
    assert (tasks[0].problem_type, rows["painter"][:]) == ("single_label_classification", ["ada"])


def test_splits_are_read_even_where_a_file_is_called_after_one(artgraph_folder):
    names = ["train.jpg", "val_test.jpg", "train.txt.jpg", "test.jpg"]
    folder = artgraph_folder(
        [{"image": name, "genre": "portrait"} for name in names],
        splits={"train": [names[3], names[1]], "val": [names[0]], "test": [names[2]]},
    )
    rows, _ = load_artworks(folder)
    assert dict(zip(rows["name"], rows["split"], strict=True)) == {
        "train.jpg": "validation",
        "val_test.jpg": "train",
        "train.txt.jpg": "test",
        "test.jpg": "train",
    }


def test_an_artwork_in_no_split_is_left_out(artgraph_folder):
    folder = artgraph_folder(
        [{"image": f"{i}.jpg", "genre": "portrait"} for i in range(4)],
        splits={"train": ["3.jpg"], "val": ["0.jpg"], "test": ["1.jpg"]},
    )
    assert load_artworks(folder)[0]["name"][:] == ["0.jpg", "1.jpg", "3.jpg"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("artist,genre\nada,portrait\n", r"artgraph_dataset.csv has no column 'image'; its columns are artist, genre"),
        ("", "has no column 'image'; its columns are none"),
        (HEADER, "artgraph_dataset.csv has no rows"),
        ("image,title\na.jpg,Lady\n", "has none of the columns artist, style, genre, tags, media"),
        (HEADER + "a.jpg,ada,rococo,portrait,,\na.jpg,ada\n", "line 3: the row does not have one value for each"),
        (HEADER + "a.jpg,ada,rococo,portrait,Tree, sea,oil\n", "line 2: the row does not have one value"),
        (HEADER + ",ada,rococo,portrait,,\n", "line 2: the row does not have one value"),
        (HEADER + "a.jpg,,,,,\nnone.jpg,,,,,\n", "line 3: there is no picture .*none.jpg"),
        (HEADER + "../secret.jpg,,,,,\n", r"line 2: the picture '../secret.jpg' lies outside"),
        (HEADER + "/etc/hostname,,,,,\n", "line 2: the picture '/etc/hostname' lies outside"),
    ],
)
def test_a_wrong_csv_is_refused_by_file_and_line(artgraph_folder, text, message):
    folder = artgraph_folder(text=text, pictures=["a.jpg"])
    (folder / "secret.jpg").touch()
    with pytest.raises(DataError, match=message):
        load_artworks(folder)


def test_a_link_to_a_file_outside_is_refused(artgraph_folder, tmp_path):
    folder = artgraph_folder([{"image": "a.jpg"}, {"image": "b.jpg"}])
    (folder / "images" / "b.jpg").rename(tmp_path / "b.jpg")
    (folder / "images" / "b.jpg").symlink_to(tmp_path / "b.jpg")
    with pytest.raises(DataError, match=r"line 3: the picture 'b\.jpg' lies outside"):
        load_artworks(folder)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tasks": ["genre", "school"]}, "has no column 'school' for the task 'school'; its columns are image"),
        ({"columns": {"artist": "painter"}}, "has no column 'painter' for the task 'artist'"),
        ({"columns": {"painter": "artist"}}, "columns names 'painter', which is not one of the tasks artist, style"),
    ],
)
def test_a_task_without_a_column_is_refused(artgraph_folder, options, message):
    folder = artgraph_folder([{"image": "a.jpg"}])
    with pytest.raises(DataError, match=message):
        load_artworks(folder, **options)


@pytest.mark.parametrize(
    ("splits", "message"),
    [
        ({"train": ["a.jpg", "c.jpg"], "val": ["b.jpg"], "test": []}, "train.txt, line 2: 'c.jpg' is not in artgraph"),
        (
            {"train": ["a.jpg"], "val": ["b.jpg"], "test": ["a.jpg"]},
            "test.txt, line 1: 'a.jpg' is already in .*'train'",
        ),
        ({"train": ["a.jpg", "a.jpg"], "val": ["b.jpg"], "test": []}, "train.txt, line 2: 'a.jpg' is already"),
        ({"train": ["a.jpg"], "val": ["b.jpg"]}, "There is no file .*test.txt: a folder 'splits' holds train.txt"),
    ],
)
def test_wrong_split_files_are_refused_by_file_and_line(artgraph_folder, splits, message):
    folder = artgraph_folder([{"image": "a.jpg"}, {"image": "b.jpg"}], splits=splits)
    with pytest.raises(DataError, match=message):
        load_artworks(folder)


def test_a_split_file_in_another_encoding_is_refused_by_name(artgraph_folder):
    folder = artgraph_folder([{"image": "a.jpg"}], splits={"train": ["a.jpg"], "val": ["a.jpg"], "test": ["a.jpg"]})
    (folder / "splits" / "train.txt").write_bytes("Müller.jpg\n".encode("latin-1"))
    with pytest.raises(DataError, match=r"train\.txt.*UTF-8"):
        load_artworks(folder)


def test_a_picture_named_twice_cannot_be_in_split_files(artgraph_folder):
    splits = {"train": ["a.jpg"], "val": [], "test": []}
    folder = artgraph_folder([{"image": "a.jpg"}, {"image": "a.jpg"}], splits=splits)
    with pytest.raises(DataError, match=r"names the picture 'a\.jpg' twice"):
        load_artworks(folder)


@pytest.mark.parametrize("empty", [["test"], ["val"], ["train", "val", "test"]])
def test_an_empty_split_file_is_refused(artgraph_folder, empty):
    names = [f"{i}.jpg" for i in range(20)]
    splits = {"train": names[:14], "val": names[14:17], "test": names[17:]} | {name: [] for name in empty}
    folder = artgraph_folder([{"image": name, "genre": "portrait"} for name in names], splits=splits)
    with pytest.raises(DataError, match="empty"):
        split_artworks(load_artworks(folder)[0])


def test_an_unnamed_index_column_does_no_harm(artgraph_folder):
    folder = artgraph_folder(text=",image,genre\n0,a.jpg,portrait\n", pictures=["a.jpg"])
    assert load_artworks(folder)[0]["genre"][:] == ["portrait"]


def test_a_byte_order_mark_does_no_harm(artgraph_folder):
    folder = artgraph_folder(text="\ufeffimage,genre\na.jpg,portrait\n", pictures=["a.jpg"])
    assert load_artworks(folder)[0]["genre"][:] == ["portrait"]


def test_a_csv_in_another_encoding_is_refused_by_name(artgraph_folder):
    folder = artgraph_folder([{"image": "a.jpg"}])
    (folder / "artgraph_dataset.csv").write_bytes("image,artist\na.jpg,Müller\n".encode("latin-1"))
    with pytest.raises(DataError, match=r"artgraph_dataset.csv.*UTF-8"):
        load_artworks(folder)


# Datasets


def hub_dataset(rows: int = 6, **columns) -> Dataset:
    """A dataset with one column of pictures and those given: name=(feature, values)."""
    pictures = [Image.new("RGB", (4, 4), (10 * i, 0, 0)) for i in range(rows)]
    features = Features({"image": ImageFeature(), **{name: feature for name, (feature, _) in columns.items()}})
    values = {name: values for name, (_, values) in columns.items()}
    return Dataset.from_dict({"image": pictures, **values}, features=features)


def load_saved(dataset: Dataset | DatasetDict, folder, **options):
    dataset.save_to_disk(str(folder / "saved"))
    return load_artworks(folder / "saved", **options)


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


def test_columns_image_column_and_tasks_name_other_columns(tmp_path):
    dataset = hub_dataset(painter=(Value("string"), ["ada"] * 6), schools=(List(Value("string")), [["a", "b"]] * 6))
    dataset = dataset.rename_column("image", "picture")
    options = {"tasks": ["artist", "schools"], "columns": {"artist": "painter"}, "image_column": "picture"}
    rows, tasks = load_saved(dataset, tmp_path, **options)
    assert [(task.name, task.is_multi_label) for task in tasks] == [("artist", False), ("schools", True)]
    assert (rows[0]["artist"], rows[0]["schools"]) == ("ada", ["a", "b"])


@pytest.mark.parametrize(
    ("columns", "options", "message"),
    [
        ({"title": Value("string")}, {}, "has none of the columns artist, style"),
        ({"genre": GENRE}, {"tasks": ["artist"]}, "the dataset has no column 'artist' for the task 'artist'"),
        ({"genre": GENRE}, {"image_column": "photo"}, "has no column 'photo'; its columns .*image_column"),
        ({"genre": Value("int64")}, {}, "The column 'genre' holds .*int64.*, not the names of labels or a ClassLabel"),
        ({"genre": List(GENRE)}, {}, "the column 'genre' of the task 'genre' should hold one label a row"),
        ({"tags": Value("string")}, {}, "the column 'tags' of the task 'tags' should hold a list of labels a row"),
    ],
)
def test_a_dataset_with_a_wrong_column_is_refused(tmp_path, columns, options, message):
    dataset = hub_dataset(**{name: (feature, [None] * 6) for name, feature in columns.items()})
    with pytest.raises(DataError, match=message):
        load_saved(dataset, tmp_path, **options)


@pytest.mark.parametrize("name", ["name", "split"])
def test_a_task_named_like_a_column_of_the_rows_is_refused(tmp_path, name):
    dataset = hub_dataset(label=(Value("string"), ["train", "test"] * 3))
    with pytest.raises(DataError, match=f"'{name}'"):
        load_saved(dataset, tmp_path, tasks=[name], columns={name: "label"})


def test_a_picture_column_that_holds_no_pictures_is_refused():
    dataset = Dataset.from_dict({"image": [1, 2], "genre": ["a", "b"]})
    with pytest.raises(DataError, match="'image'"):
        read_datasets(dataset, ReadingOptions())


def test_a_row_without_a_picture_is_refused_by_its_number(tmp_path):
    dataset = Dataset.from_dict(
        {"image": [Image.new("RGB", (2, 2)), None], "genre": ["a", "b"]},
        features=Features({"image": ImageFeature(), "genre": Value("string")}),
    )
    with pytest.raises(DataError, match="Row 1 of the dataset has no picture"):
        load_saved(dataset, tmp_path)


def test_a_dataset_without_rows_is_refused():
    with pytest.raises(DataError, match="has no rows"):
        read_datasets(hub_dataset(rows=0, genre=(GENRE, [])), ReadingOptions())


def test_a_folder_that_is_not_there_is_refused():
    with pytest.raises(DataError, match=r"There is no folder './nowhere': give the path of a dataset, or a Hub id"):
        load_artworks("./nowhere")


def test_a_lone_train_part_is_train_and_is_divided_later(tmp_path):
    dataset = hub_dataset(rows=20, genre=(GENRE, [0, 1] * 10))
    rows, _ = load_saved(DatasetDict({"train": dataset}), tmp_path)
    splits = split_artworks(rows)
    assert {name: len(part) for name, part in splits.items()} == {"train": 14, "validation": 3, "test": 3}


def test_the_parts_of_a_dataset_are_its_splits(tmp_path):
    dataset = hub_dataset(genre=(GENRE, [0, 1] * 3))
    parts = {"train": dataset.select([0, 1, 2]), "validation": dataset.select([3]), "test": dataset.select([4, 5])}
    rows, _ = load_saved(DatasetDict(parts), tmp_path)
    assert rows["split"][:] == ["train"] * 3 + ["validation"] + ["test"] * 2


def test_a_part_with_another_name_is_refused(tmp_path):
    with pytest.raises(DataError, match="has a split 'extra'; splits are called train, val, valid, validation, test"):
        load_saved(DatasetDict({"extra": hub_dataset(genre=(GENRE, [0] * 6))}), tmp_path)


def test_the_same_picture_in_two_parts_is_refused(tmp_path):
    dataset = hub_dataset(genre=(GENRE, [0, 1] * 3))
    parts = {"train": dataset.select([0, 1, 2]), "validation": dataset.select([3]), "test": dataset.select([2, 5])}
    rows, _ = load_saved(DatasetDict(parts), tmp_path)
    with pytest.raises(DataError, match="is in two splits, 'train' and 'test'"):
        split_artworks(rows)


@pytest.mark.parametrize("empty", ["test", "validation"])
def test_a_part_without_rows_is_refused(empty):
    dataset = hub_dataset(rows=20, genre=(GENRE, [0, 1] * 10))
    parts = {"train": dataset.select(range(14)), "validation": dataset.select([15]), "test": dataset.select([16])}
    parts[empty] = dataset.select([])
    with pytest.raises(DataError, match="empty"):
        split_artworks(read_datasets(DatasetDict(parts), ReadingOptions())[0])


@pytest.mark.parametrize(
    ("feature", "values"),
    [
        (Value("string"), ["train", "val", "test", "valid", "validation", "train"]),
        (ClassLabel(names=["test", "val", "train"]), [2, 1, 0, 1, 1, 2]),
    ],
)
def test_a_split_column_is_read(tmp_path, feature, values):
    dataset = hub_dataset(genre=(GENRE, [0] * 6), split=(feature, values))
    rows, _ = load_saved(dataset, tmp_path)
    assert rows["split"][:] == ["train", "validation", "test", "validation", "validation", "train"]


@pytest.mark.parametrize(
    "wrong",
    [
        "dev",
        None,
        "",
    ],
)
def test_a_split_column_with_another_name_is_refused(tmp_path, wrong):
    dataset = hub_dataset(genre=(GENRE, [0] * 6), split=(Value("string"), ["train"] * 5 + [wrong]))
    with pytest.raises(DataError, match=f"The column 'split' holds {wrong!r}; splits are called train, val"):
        load_saved(dataset, tmp_path)


def test_a_split_column_is_read_in_a_lone_train_part_too(tmp_path):
    values = ["train", "train", "validation", "test", "test", "train"]
    dataset = hub_dataset(genre=(GENRE, [0] * 6), split=(Value("string"), values))
    rows, _ = load_saved(DatasetDict({"train": dataset}), tmp_path)
    assert rows["split"][:] == values


def test_a_part_that_lacks_a_column_of_the_others_is_refused(tmp_path):
    dataset = hub_dataset(genre=(GENRE, [0] * 6), style=(Value("string"), ["rococo"] * 6))
    parts = {"train": dataset.select([0, 1]), "test": dataset.select([2, 3]).remove_columns("style")}
    with pytest.raises(DataError, match="style"):
        load_saved(DatasetDict(parts), tmp_path)


@pytest.fixture
def picture_folder(tmp_path, monkeypatch):
    """A folder of pictures with `metadata.jsonl`; what `datasets` caches stays in a temporary folder."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    folder = tmp_path / "pictures"
    folder.mkdir()
    lines = []
    for i in range(20):
        Image.new("RGB", (4, 4), (i, 0, 0)).save(folder / f"{i:02}.png")
        line = {"file_name": f"{i:02}.png", "artist": "Ada" if i else None, "tags": ["Tree", "静物"] if i % 2 else []}
        lines.append(json.dumps(line))
    (folder / "metadata.jsonl").write_text("\n".join(lines), encoding="utf-8")
    return folder


def test_a_folder_of_pictures_with_metadata_is_read(picture_folder):
    rows, tasks = load_artworks(picture_folder)
    assert [task.name for task in tasks] == ["artist", "tags"]
    by_file = {os.path.basename(name): row for name, row in zip(rows["name"], rows, strict=True)}
    assert by_file["00.png"]["artist"] is None
    assert (by_file["03.png"]["artist"], by_file["03.png"]["tags"]) == ("Ada", ["Tree", "静物"])
    assert by_file["04.png"]["tags"] is None
    assert read_picture(by_file["07.png"]["image"]).getpixel((0, 0)) == (7, 0, 0)


def test_a_moved_folder_of_pictures_is_divided_as_before(picture_folder, tmp_path):
    def test_files(folder) -> set[str]:
        return {os.path.basename(name) for name in split_artworks(load_artworks(folder)[0])["test"]["name"]}

    before = test_files(picture_folder)
    moved = picture_folder.rename(tmp_path / "elsewhere")
    assert test_files(moved) == before


def test_a_csv_column_names_the_splits(artgraph_folder):
    rows = [{"image": f"{i}.jpg", "genre": "portrait"} for i in range(20)]
    text = "image,genre,split\n" + "".join(
        f"{row['image']},portrait,{('val' if i == 17 else 'test') if i > 16 else 'train'}\n"
        for i, row in enumerate(rows)
    )
    folder = artgraph_folder(text=text, pictures=[row["image"] for row in rows])
    splits = split_artworks(load_artworks(folder)[0])
    assert {name: part["name"][:] for name, part in splits.items()} == {
        "train": [f"{i}.jpg" for i in range(17)],
        "validation": ["17.jpg"],
        "test": ["18.jpg", "19.jpg"],
    }
    (folder / "artgraph_dataset.csv").write_text(text.replace("19.jpg,portrait,test", "19.jpg,portrait,tset"))
    with pytest.raises(DataError, match=r"line 21: the split 'tset' is none of train"):
        load_artworks(folder)
    (folder / "artgraph_dataset.csv").write_text(text)
    (folder / "splits").mkdir()
    for name, listed in (("train", "1.jpg"), ("val", "2.jpg"), ("test", "3.jpg")):
        (folder / "splits" / f"{name}.txt").write_text(f"{listed}\n")
    with pytest.raises(DataError, match="has a column 'split' and there is a folder"):
        load_artworks(folder)


def test_a_csv_may_have_further_tasks_with_several_labels(artgraph_folder):
    text = 'image,artist,subjects\na.jpg,ada,"sea, sky"\nb.jpg,bea,sky\n'
    folder = artgraph_folder(text=text, pictures=["a.jpg", "b.jpg"])
    rows, tasks = load_artworks(folder, tasks=["artist", "subjects"], multi_label_tasks=["subjects"])
    assert [task.is_multi_label for task in tasks] == [False, True]
    assert rows["subjects"][:] == [["sea", "sky"], ["sky"]]
    with pytest.raises(DataError, match="multi_label_tasks names 'subject', which is not among the tasks"):
        load_artworks(folder, tasks=["artist", "subjects"], multi_label_tasks=["subject"])


def test_a_quotation_mark_that_is_not_closed_is_named(artgraph_folder):
    text = 'image,artist\na.jpg,ada\nb.jpg,"bea\nc.jpg,cleo\n'
    folder = artgraph_folder(text=text, pictures=["a.jpg", "b.jpg", "c.jpg"])
    with pytest.raises(DataError, match=r"artgraph_dataset\.csv, line \d: a cell goes over several lines"):
        load_artworks(folder)
    (folder / "artgraph_dataset.csv").write_text(text + "d.jpg,dora\n" * 20_000)
    with pytest.raises(DataError, match="look for an unclosed quotation mark"):
        load_artworks(folder)


def test_the_split_is_stratified_by_a_column_that_is_no_task(artgraph_folder):
    """The same artworks are in the test split whichever tasks are learnt."""
    rows = [
        {"image": f"{i:03}.jpg", "artist": "ada" if i % 2 else "bea", "genre": "portrait" if i < 60 else "marina"}
        for i in range(200)
    ]
    folder = artgraph_folder(rows)
    parts = [
        split_artworks(load_artworks(folder, tasks=tasks, stratify_by="genre")[0])
        for tasks in (["artist", "genre"], ["artist"])
    ]
    assert parts[0]["test"]["name"][:] == parts[1]["test"]["name"][:]
    assert sum(name < "060.jpg" for name in parts[1]["test"]["name"]) == 9
    with pytest.raises(DataError, match="has no column 'gerne' to stratify the split by"):
        load_artworks(folder, stratify_by="gerne")


def test_a_source_that_is_no_dataset_is_one_sentence(tmp_path):
    (tmp_path / "empty").mkdir()
    for source in (str(tmp_path / "empty"), "nosuch/dataset-here"):
        with pytest.raises(DataError, match="cannot be read as a dataset") as error:
            load_artworks(source)
        assert source in str(error.value)
