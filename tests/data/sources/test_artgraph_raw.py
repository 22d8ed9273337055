"""ArtGraph's raw form: mappings and edges as its exporter writes them."""

import csv

import pytest

from artgraph_vit.data import read_picture
from artgraph_vit.errors import UserError
from tests.data.loading import load

NAMES = ['a_b_"c", d.jpg', "zoë_静物.jpg", "train_val_test.jpg"]
MAPPINGS = {
    "artwork": NAMES,
    "artist": ["zoë", 'b, "the elder"'],
    "style": ["rococo"],
    "genre": ["portrait", "still life"],
    "tag": ["Tree", "sea, sky", "静物"],
    "media": ["oil"],
}
EDGES = {
    "createdby___artist": [(0, 1), (1, 0)],
    "hasstyle___style": [(2, 0)],
    "hasgenre___genre": [(0, 0), (1, 1), (2, 0)],
    "about___tag": [(0, 0), (0, 1), (2, 2), (0, 0)],
    "madeof___media": [(1, 0)],
}
OLD = {"createdby": "author", "hasstyle": "style", "hasgenre": "genre", "madeof": "media"}


@pytest.fixture
def raw_folder(tmp_path, make_pictures):
    """`raw_folder(mappings, edges)`: what is given replaces what a good folder has; None takes it away."""

    def write(mappings=None, edges=None):
        folder = make_pictures(tmp_path / "raw" / "images", NAMES).parent
        (folder / "mapping").mkdir()
        for node_type, names in {**MAPPINGS, **(mappings or {})}.items():
            if names is not None:
                write_csv(folder / "mapping" / f"{node_type}_entidx2name.csv", enumerate(names))
        for relation, pairs in {**EDGES, **(edges or {})}.items():
            if pairs is not None:
                write_csv(folder / "raw" / "relations" / f"artwork___{relation}" / "edge.csv", pairs)
        return folder

    return write


def write_csv(path, lines):
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows(lines)


def expected(rows):
    by_name = {row["name"]: row for row in rows}
    return [[by_name[name][task] for name in NAMES] for task in ("artist", "style", "genre", "tags", "media", "split")]


LABELS = [
    ['b, "the elder"', "zoë", None],
    [None, None, "rococo"],
    ["portrait", "still life", "portrait"],
    [["Tree", "sea, sky"], None, ["静物"]],
    [None, ["oil"], None],
    [None] * 3,
]


def test_the_graph_is_read(raw_folder):
    rows, tasks = load(raw_folder())
    assert [task.name for task in tasks] == ["artist", "style", "genre", "tags", "media"]
    assert expected(rows) == LABELS
    assert all(read_picture(row["image"]).size == (4, 4) for row in rows)


def test_former_names_of_relations(raw_folder):
    edges = dict.fromkeys(EDGES)
    for relation, pairs in EDGES.items():
        name, node_type = relation.split("___")
        edges[f"{OLD.get(name, name)}___{node_type}"] = pairs
    assert expected(load(raw_folder(edges=edges))[0]) == LABELS


@pytest.mark.parametrize("relation", [name for name in EDGES if name.split("___")[0] in OLD])
def test_a_relation_under_both_names(raw_folder, relation):
    name, node_type = relation.split("___")
    folder = raw_folder(edges={f"{OLD[name]}___{node_type}": [(0, 0)]})
    with pytest.raises(UserError, match=f"{relation} and .*{OLD[name]}___{node_type} both lead to the task") as error:
        load(folder)
    assert "keep one" in str(error.value)


def test_relations_that_lead_elsewhere_are_left_alone(raw_folder):
    folder = raw_folder(edges={"locatedin___gallery": [("no", "edge"), ("of", "ours")], "hasstyle___style": None})
    assert [task.name for task in load(folder)[1]] == ["artist", "genre", "tags", "media"]


def test_blank_lines_blanks_after_commas_and_a_mark_at_the_start_do_no_harm(raw_folder):
    folder = raw_folder(mappings={"genre": None})
    text = '\ufeff0, portrait\r\n1, "still life"\r\n\r\n'
    (folder / "mapping" / "genre_entidx2name.csv").write_bytes(text.encode())
    assert expected(load(folder)[0]) == LABELS


def test_splits_and_other_folders_of_pictures(raw_folder, tmp_path):
    folder = raw_folder()
    (folder / "splits").mkdir()
    for split, name in zip(("test", "train", "val"), NAMES, strict=True):
        (folder / "splits" / f"{split}.txt").write_text(f"{name}\n", encoding="utf-8")
    (folder / "images").rename(tmp_path / "disk")
    rows, _ = load(folder, image_folder=tmp_path / "disk")
    assert expected(rows)[-1] == ["test", "train", "validation"]
    (folder / "splits" / "val.txt").write_text("zoe.jpg\n")
    with pytest.raises(UserError, match=r"raw lacks 'zoe\.jpg', which is in .*splits: take it out there"):
        load(folder, image_folder=tmp_path / "disk")


@pytest.mark.parametrize(
    ("edges", "message"),
    [
        ([(0, 0), (3, 0)], "edge.csv, line 2: no artwork with a name has the id '3': add it"),
        ([(0, 0), (0, 2)], "edge.csv, line 2: no genre with a name has the id '2': add it"),
        ([("0.0", 0)], "line 1: no artwork with a name has the id '0.0'"),
        ([(0,)], "line 1: the row does not have one value for each column"),
        ([(0, "")], "line 1: no genre with a name has the id ''"),
        ([(0, "a\nb")], "line 2: a cell goes over several lines"),
        ([(0, 0), (0, 1)], "has 2 labels for the task 'genre', which has one: portrait, still life; keep one"),
    ],
)
def test_a_wrong_edge(raw_folder, edges, message):
    folder = raw_folder(edges={"hasgenre___genre": edges})
    with pytest.raises(UserError, match=message) as error:
        load(folder)
    assert str(folder) in str(error.value)


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (None, "artwork_entidx2name.csv cannot be read .*No such file"),
        ([*NAMES[:2], ""], "no artwork with a name has the id '2'"),
        ([*NAMES, NAMES[0]], "has 2 artworks called 'a_b_.*: a name leads to one picture"),
        ([*NAMES, "../mapping/artwork_entidx2name.csv"], "lies outside"),
        ([], "has no rows"),
    ],
)
def test_a_wrong_artwork(raw_folder, names, message):
    folder = raw_folder(mappings={"artwork": names}, edges={} if names else {relation: [] for relation in EDGES})
    with pytest.raises(UserError, match=message) as error:
        load(folder, ["genre"], missing_tasks="unknown")
    assert str(folder) in str(error.value)


def test_an_id_that_stands_twice(raw_folder):
    folder = raw_folder()
    write_csv(folder / "mapping" / "tag_entidx2name.csv", [(0, "Tree"), (0, "sea")])
    with pytest.raises(UserError, match=r"tag_entidx2name\.csv, line 2: the id '0' stands twice: give each node its"):
        load(folder)
