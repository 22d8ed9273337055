"""ArtGraph's csv, with all that can be wrong in it, and the rules that all readers of files share."""

import pytest

from artgraph_vit.data import read_picture
from artgraph_vit.errors import UserError
from artgraph_vit.model.tasks import MULTI_LABEL, SINGLE_LABEL, Task
from tests.data.loading import divided, load

HEADER = "image,artist,style,genre,tags,media\n"


def test_a_row_holds_the_names_of_its_labels_and_none_for_unknown(artgraph_folder):
    folder = artgraph_folder(
        [
            {"image": "a.jpg", "artist": "ada", "genre": "portrait", "tags": "Tree, sea", "media": "oil"},
            {"image": "b.jpg", "style": "rococo"},
        ]
    )
    rows, tasks = load(folder)
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
    row = load(folder)[0][0]
    assert row["name"] == "a, b.jpg"
    assert row["artist"] == 'Müller, Ñ "the elder"'  # only a cell with several labels is cut
    assert row["tags"] == ["Tree", "静物", "tree"]
    assert row["media"] == ["oil,on panel"]  # labels are joined by ", ", not by ","


def test_tasks_and_columns_choose_what_is_read(artgraph_folder):
    folder = artgraph_folder(text="image,painter,tags\na.jpg,ada,Tree\n", pictures=["a.jpg"])
    assert [task.name for task in load(folder)[1]] == ["tags"]
    rows, tasks = load(folder, tasks=["artist"], columns={"artist": "painter"})
    assert [task.name for task in tasks] == ["artist"]
    assert rows["artist"][:] == ["ada"]
    rows, tasks = load(folder, tasks=["painter"])
    assert (tasks[0].problem_type, rows["painter"][:]) == ("single_label_classification", ["ada"])


def test_splits_are_read_even_where_a_file_is_called_after_one(artgraph_folder):
    names = ["train.jpg", "val_test.jpg", "train.txt.jpg", "test.jpg"]
    folder = artgraph_folder(
        [{"image": name, "genre": "portrait"} for name in [*names, "in no split, and left out.jpg"]],
        splits={"train": [names[3], names[1]], "val": [names[0]], "test": [names[2]]},
    )
    rows, _ = load(folder)
    assert dict(zip(rows["name"], rows["split"], strict=True)) == {
        "train.jpg": "validation",
        "val_test.jpg": "train",
        "train.txt.jpg": "test",
        "test.jpg": "train",
    }


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("artist,genre\nada,portrait\n", r"artgraph_dataset.csv has no column 'image'; its columns are artist, genre"),
        (HEADER, "artgraph_dataset.csv has no rows"),
        ("image,title\na.jpg,Lady\n", "has none of the columns artist, style, genre, tags, media"),
        (HEADER + "a.jpg,ada,rococo,portrait,,\na.jpg,ada\n", "line 3: the row does not have one value for each"),
        (HEADER + ",ada,rococo,portrait,,\n", "line 2: there is no picture"),
        (HEADER.replace("style", "artist"), "has a column twice, of image, artist, artist, genre.*: rename or re"),
        (HEADER + "a.jpg,,,,,\nnone.jpg,,,,,\n", "line 3: there is no picture .*none.jpg"),
        ('image,artist\na.jpg,ada\nb.jpg,"bea\nc.jpg,cleo\n', r"csv, line \d: a cell goes over several lines"),
        ('image,artist\nb.jpg,"bea\n' + "d.jpg,dora\n" * 20_000, r"line 2 cannot be read .*look for an unclosed"),
        ('image,"artist\n' + "a.jpg,ada\n" * 20_000, r"line \d cannot be read .*unclosed quotation mark"),
    ],
)
def test_a_wrong_csv_is_refused_by_file_and_line(artgraph_folder, text, message):
    folder = artgraph_folder(text=text, pictures=["a.jpg"])
    with pytest.raises(UserError, match=message):
        load(folder)


def test_a_csv_column_names_the_splits(artgraph_folder):
    text = "image,genre,split\n1.jpg,x,train\n2.jpg,x,val\n3.jpg,x,test\n4.jpg,x,train\n"
    folder = artgraph_folder(text=text, pictures=[f"{number}.jpg" for number in range(1, 5)])
    splits = divided(load(folder)[0])
    assert {name: part["name"][:] for name, part in splits.items()} == {
        "train": ["1.jpg", "4.jpg"],
        "validation": ["2.jpg"],
        "test": ["3.jpg"],
    }
    (folder / "artgraph_dataset.csv").write_text(text.replace("test", "tset"))
    with pytest.raises(UserError, match=r"line 4: the split 'tset' is none of train"):
        load(folder)
    (folder / "artgraph_dataset.csv").write_text(text)
    (folder / "splits").mkdir()
    for name, listed in (("train", "1.jpg"), ("val", "2.jpg"), ("test", "3.jpg")):
        (folder / "splits" / f"{name}.txt").write_text(f"{listed}\n")
    with pytest.raises(UserError, match="has a column 'split' and there is a folder"):
        load(folder)


def test_the_split_is_stratified_by_a_column_that_is_no_task(artgraph_folder):
    """The same artworks are in the test split whichever tasks are learnt."""
    rows = [
        {"image": f"{i:03}.jpg", "artist": "ada" if i % 2 else "bea", "genre": "portrait" if i < 60 else "marina"}
        for i in range(200)
    ]
    folder = artgraph_folder(rows)
    parts = [divided(load(folder, tasks=tasks, stratify_by="genre")[0]) for tasks in (["artist", "genre"], ["artist"])]
    assert parts[0]["test"]["name"][:] == parts[1]["test"]["name"][:]
    assert sum(name < "060.jpg" for name in parts[1]["test"]["name"]) == 9
    with pytest.raises(UserError, match="has no column 'gerne' to stratify the split by"):
        load(folder, stratify_by="gerne")


@pytest.mark.parametrize(
    "name",
    [
        'a, "b".jpg',
        "zoë_la mer_静物_1.jpg",
        "l%C3%BCbeck.jpg",
        "train/val/test.jpg",
        "train.txt",
        "a\u2028b\x85c.jpg",  # str.splitlines would cut here
        "[a].jpg",
        "-rf.jpg",
    ],
)
def test_names_of_all_kinds(tmp_path, make_pictures, name):
    folder = make_pictures(tmp_path / "images", [name, "b.jpg", "c.jpg"]).parent
    lines = [f'"{each.replace(chr(34), chr(34) * 2)}",portrait' for each in (name, "b.jpg", "c.jpg")]
    (folder / "artgraph_dataset.csv").write_text("\n".join(["image,genre", *lines]) + "\n", encoding="utf-8")
    (folder / "splits").mkdir()
    for split, each in (("train", "b.jpg"), ("val", name), ("test", "c.jpg")):
        (folder / "splits" / f"{split}.txt").write_bytes(f"{each}\r\n".encode())
    rows, _ = load(folder)
    assert rows["name"][:] == [name, "b.jpg", "c.jpg"]
    assert rows["split"][:] == ["validation", "train", "test"]
    assert read_picture(rows[0]["image"]).size == (4, 4)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("http://example.org/a.jpg", "is an address, and readers fetch nothing: unpack it"),
        ("hf://datasets/huggan/wikiart/a.jpg", "is an address"),
        ("../secret.jpg", "the picture '../secret.jpg' lies outside"),
        ("/etc/hostname", "the picture '/etc/hostname' lies outside"),
        ("link.jpg", "the picture 'link.jpg' lies outside"),
        (".", "there is no picture"),
        ("a\0.jpg", "cannot be looked up .*null"),
        ("a" * 300 + ".jpg", "cannot be looked up .*too long"),
        ("ring.jpg", "ring.jpg"),
        ("other/secret.jpg", "lies outside"),
        ("/{folder}/images/a.jpg", "lies outside .*name it relative to that folder"),
    ],
)
def test_a_name_that_leads_out_of_the_folder_or_nowhere(artgraph_folder, tmp_path, name, message):
    name = name.replace("/{folder}", str(tmp_path / "artgraph"))
    folder = artgraph_folder(text=f"image,genre\na.jpg,portrait\n{name},portrait\n", pictures=["a.jpg"])
    (tmp_path / "artgraph" / "secret.jpg").touch()
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "secret.jpg").touch()
    (folder / "images" / "other").symlink_to(tmp_path / "elsewhere")
    (folder / "images" / "ring.jpg").symlink_to("ring.jpg")
    (folder / "images" / "link.jpg").symlink_to(tmp_path / "elsewhere" / "secret.jpg")
    with pytest.raises(UserError, match=message) as error:
        load(folder)
    assert "artgraph_dataset.csv, line 3" in str(error.value)


def test_links_that_stay_inside_and_a_folder_that_is_one(artgraph_folder, tmp_path):
    folder = artgraph_folder([{"image": "a.jpg", "genre": "x"}, {"image": "b.jpg", "genre": "y"}], pictures=["a.jpg"])
    (folder / "images" / "b.jpg").symlink_to("a.jpg")
    (folder / "images").rename(tmp_path / "disk")
    (folder / "images").symlink_to(tmp_path / "disk")
    assert load(folder)[0]["name"][:] == ["a.jpg", "b.jpg"]


def test_pictures_in_another_folder(artgraph_folder, tmp_path):
    folder = artgraph_folder([{"image": "a.jpg", "genre": "x"}])
    (folder / "images").rename(tmp_path / "disk")
    assert load(folder, image_folder=str(tmp_path / "disk"))[0]["name"][:] == ["a.jpg"]
    with pytest.raises(UserError, match=r"line 2: there is no picture .*images/a\.jpg"):
        load(folder)
    with pytest.raises(UserError, match=r"There is no folder '.*nowhere', which image_folder names"):
        load(folder, image_folder=str(tmp_path / "nowhere"))
    for source in ("huggan/wikiart", str(tmp_path)):
        with pytest.raises(UserError, match=f"image_folder belongs to the sources of ArtGraph .* '{source}' is neit"):
            load(source, image_folder=tmp_path)


def test_tasks_that_the_source_lacks(artgraph_folder):
    folder = artgraph_folder(text="image,genre\na.jpg,x\nb.jpg,y\n", pictures=["a.jpg", "b.jpg"])
    names = ["genre", "media", Task("school", SINGLE_LABEL, ("delft", "siena")), "subjects"]
    rows, tasks = load(folder, names, missing_tasks="unknown", multi_label_tasks=["subjects"])
    assert [(task.name, task.is_multi_label, task.labels) for task in tasks] == [
        ("genre", False, ()),
        ("media", True, ()),
        ("school", False, ("delft", "siena")),
        ("subjects", True, ()),
    ]
    assert [rows[name][:] for name in ("media", "school", "subjects")] == [[None, None]] * 3
    assert [task.name for task in load(folder, missing_tasks="unknown")[1]] == ["genre"]
    for given, options, message in (
        (names, {}, "has no column 'media' for the task 'media'; its columns are image, genre"),
        (names, {"missing_tasks": "ignore"}, "missing_tasks='ignore': use one of error, unknown"),
        (None, {"columns": {"artist": "painter"}}, "has no column 'painter' for the task 'artist'"),
        (None, {"columns": {"painter": "artist"}}, "columns names 'painter', which is not one of the tasks artist"),
    ):
        with pytest.raises(ValueError, match=message):
            load(folder, given, **options)


def test_several_labels_by_a_separator_or_as_json(artgraph_folder):
    text = 'image,tags,subjects\na.jpg," Tree |sea| |Tree","[""a, b"", ""[c]""]"\nb.jpg,[],a|b\n'
    folder = artgraph_folder(text=text, pictures=["a.jpg", "b.jpg"])
    options = {"tasks": ["tags", "subjects"], "label_separator": "|"}
    with pytest.raises(UserError, match="multi_label_tasks names 'subject', which is not one of the tasks tags, sub"):
        load(folder, multi_label_tasks=["subject"], **options)
    rows, _ = load(folder, multi_label_tasks=["subjects"], **options)
    assert rows["tags"][:] == [["Tree", "sea"], None]
    assert rows["subjects"][:] == [["a, b", "[c]"], ["a", "b"]]


@pytest.mark.parametrize(
    ("cell", "message"),
    [
        ("[a", "the tags begin like a JSON list and are none"),
        ("[true]", "the tags True is no text, nor a list of texts: give names"),
        ("[" * 100_000, "the tags begin like a JSON list and are none"),
    ],
)
def test_a_json_list_that_is_none(artgraph_folder, cell, message):
    folder = artgraph_folder(text=f"image,tags\na.jpg,{cell}\n", pictures=["a.jpg"])
    with pytest.raises(UserError, match=message) as error:
        load(folder)
    assert "artgraph_dataset.csv, line 2: the tags" in str(error.value)


def test_several_labels_in_a_task_that_was_single(artgraph_folder):
    folder = artgraph_folder(text='image,artist\na.jpg,"ada, bea"\nb.jpg,ada\n', pictures=["a.jpg", "b.jpg"])
    rows, tasks = load(folder, ["artist"], multi_label_tasks=["artist"])
    assert rows["artist"][:] == [["ada", "bea"], ["ada"]]
    assert tasks == [Task("artist", MULTI_LABEL, rare="drop")]


def test_a_task_whose_name_no_head_can_have(artgraph_folder):
    folder = artgraph_folder(text="image,my task\na.jpg,x\n", pictures=["a.jpg"])
    with pytest.raises(UserError, match="'my task' is not an identifier"):
        load(folder, ["my task"])
    assert load(folder, ["my_task"], columns={"my_task": "my task"})[0]["my_task"][:] == ["x"]


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("https://example.org/wikiart", "is an address: download it and give its folder"),
        ("hf://datasets/huggan/wikiart", "is an address.*give a Hub id"),
        ("./" + "a" * 300, "There is no folder"),
        ("a" * 300, "cannot be read as a dataset"),
        ("a\0", "cannot be read as a dataset"),
        ("parquet", "cannot be read as a dataset"),
        ("nosuch/dataset-here", "is no folder here, and cannot be read as a dataset"),
        ("{tmp}/file.csv", "There is no folder .*: give the folder of a dataset"),
        ("{tmp}/empty", "cannot be read as a dataset"),
    ],
)
def test_a_source_that_is_none_is_one_sentence(tmp_path, monkeypatch, source, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    (tmp_path / "file.csv").touch()
    source = source.replace("{tmp}", str(tmp_path))
    with pytest.raises(UserError, match=message) as error:
        load(source)
    assert repr(source) in str(error.value)
    assert "\n" not in str(error.value)


def test_split_files_that_are_wrong(artgraph_folder):
    folder = artgraph_folder([{"image": "a.jpg"}, {"image": "b.jpg"}], splits={"train": "a", "val": "a", "test": "a"})
    for files, message in (
        (
            {"train": "a.jpg\nc.jpg\n", "val": "b.jpg\n", "test": "d.jpg\n"},
            r"artgraph_dataset\.csv lacks 'c\.jpg', which is in .*splits: take it out there",
        ),
        ({"train": "a.jpg\n", "val": "b.jpg\n", "test": "a.jpg"}, r"test\.txt, line 1: 'a\.jpg' is already .*'train'"),
        ({"train": "a.jpg\na.jpg\n"}, r"train\.txt, line 2: 'a\.jpg' is already in the split 'train': keep one"),
        ({"train": "a.jpg\n", "val": "b.jpg\n", "test": ""}, r"test\.txt is empty: name the artworks of the split"),
        ({"train": ""}, r"train\.txt is empty"),
        ({"train": "Müller.jpg\n"}, r"train\.txt cannot be read as text in UTF-8"),
    ):
        for name, text in files.items():
            (folder / "splits" / f"{name}.txt").write_bytes(text.encode("latin-1"))
        with pytest.raises(UserError, match=message):
            load(folder)
    (folder / "splits" / "test.txt").unlink()
    (folder / "splits" / "train.txt").write_text("a.jpg\n")
    with pytest.raises(UserError, match=r"test\.txt cannot be read .*No such file"):
        load(folder)


def test_forms_of_a_csv_that_do_no_harm_and_one_in_another_encoding(artgraph_folder):
    """A byte order mark, an index without a name as pandas writes it, blanks around labels."""
    folder = artgraph_folder(
        text="\ufeff,image,artist,genre\n0,a.jpg, ada ,  \n1,b.jpg,ada,x\n", pictures=["a.jpg", "b.jpg"]
    )
    rows, _ = load(folder)
    assert (rows["artist"][:], rows["genre"][:]) == (["ada", "ada"], [None, "x"])
    (folder / "artgraph_dataset.csv").write_bytes("image,artist\na.jpg,Müller\n".encode("latin-1"))
    with pytest.raises(UserError, match=r"artgraph_dataset\.csv cannot be read as text in UTF-8"):
        load(folder)
