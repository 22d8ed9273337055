"""ArtGraph from a Neo4j server: the real driver and the real queries over a real socket, against a small server.

That server's answers are made after ArtGraph's published schema: see bolt_server.py.
"""

import pytest
from bolt_server import BoltServer

from artgraph_vit.data import DataError, load_artworks

ARTWORKS = "MATCH (artwork:Artwork) RETURN artwork.name AS artwork"
EDGES = "MATCH (artwork:Artwork)-[:{}]->(label:{}) RETURN artwork.name AS artwork, label.name AS label"
RELATIONS = {
    "artist": ("createdBy", "Artist"),
    "style": ("hasStyle", "Style"),
    "genre": ("hasGenre", "Genre"),
    "tags": ("about", "Tag"),
    "media": ("madeOf", "Media"),
}
NAMES = ["zoë_la-mer_1.jpg", 'a, "b"_train.jpg', "hans_l%C3%BCbeck.jpg"]


def answers(names=NAMES, **edges) -> dict:
    found = {ARTWORKS: (["artwork"], [[name] for name in names])}
    for task, relation in RELATIONS.items():
        found[EDGES.format(*relation)] = (["artwork", "label"], edges.get(task, []))
    return found


@pytest.fixture
def images(make_pictures, tmp_path, monkeypatch):
    monkeypatch.setenv("NEO4J_USERNAME", "neo4j")
    monkeypatch.setenv("NEO4J_PASSWORD", "secret")
    monkeypatch.delenv("NEO4J_DATABASE", raising=False)
    return make_pictures(tmp_path / "images", NAMES)


@pytest.mark.parametrize("scheme", ["bolt", "neo4j"])
def test_the_graph_is_read(images, scheme, monkeypatch):
    edges = {
        "artist": [[NAMES[0], "zoë"], [NAMES[1], "b, the elder"]],
        "genre": [[NAMES[1], "portrait"]],
        "tags": [[NAMES[0], "Tree"], [NAMES[0], "sea"], [NAMES[2], "静物"]],
        "media": [[NAMES[2], "oil"]],
    }
    monkeypatch.setenv("NEO4J_DATABASE", "artgraph")
    with BoltServer(answers(**edges)) as server:
        rows, tasks = load_artworks(f"{scheme}://{server.address}", image_folder=images)
    by_name = {row["name"]: row for row in rows}
    assert [task.name for task in tasks] == ["artist", "genre", "tags", "media"]  # it has no edge of a style
    assert rows["name"][:] == sorted(NAMES)
    assert by_name[NAMES[0]]["artist"] == "zoë"
    assert by_name[NAMES[1]]["artist"] == "b, the elder"
    assert by_name[NAMES[2]]["artist"] is None
    assert (by_name[NAMES[0]]["tags"], by_name[NAMES[2]]["tags"]) == (["Tree", "sea"], ["静物"])
    assert by_name[NAMES[1]]["media"] is None
    assert len(server.runs) == 6
    assert {database for _, database in server.runs} == {"artgraph"}


def test_an_answer_longer_than_the_driver_fetches_at_once(images):
    tags = [[NAMES[index % 3], f"tag {index}"] for index in range(2500)]
    with BoltServer(answers(tags=tags)) as server:
        rows, _ = load_artworks(f"bolt://{server.address}", image_folder=images)
    assert sorted(tag for row in rows for tag in row["tags"]) == sorted(tag for _, tag in tags)
    assert server.pulls == 5 + 3


def test_split_files_beside_the_pictures_are_read(images):
    (images.parent / "splits").mkdir()
    for split, name in zip(("train", "val", "test"), NAMES, strict=True):
        (images.parent / "splits" / f"{split}.txt").write_text(f"{name}\n", encoding="utf-8")
    with BoltServer(answers(genre=[[name, "portrait"] for name in NAMES])) as server:
        rows, _ = load_artworks(f"bolt://{server.address}", image_folder=images)
    splits = dict(zip(NAMES, ("train", "validation", "test"), strict=True))
    assert {row["name"]: row["split"] for row in rows} == splits


def test_a_task_without_an_edge_is_kept_on_demand(images):
    with BoltServer(answers(genre=[[NAMES[0], "portrait"]])) as server:
        uri = f"bolt://{server.address}"
        rows, _ = load_artworks(uri, ["genre", "style"], missing_tasks="unknown", image_folder=images)
        with pytest.raises(DataError, match="has no column 'style' for the task 'style'"):
            load_artworks(uri, ["genre", "style"], image_folder=images)
    assert rows["style"][:] == [None] * 3


def test_who_may_not_log_in_is_told_so(images, monkeypatch):
    monkeypatch.setenv("NEO4J_PASSWORD", "wrong")
    with BoltServer(answers()) as server, pytest.raises(DataError, match=r"unauthorized.*NEO4J_PASSWORD") as error:
        load_artworks(f"bolt://{server.address}", image_folder=images)
    assert server.address in str(error.value)
    assert "wrong" not in str(error.value)
    assert server.runs == []


def test_no_server(images):
    with BoltServer(answers()) as server:
        uri = f"bolt://{server.address}"
    with pytest.raises(DataError, match=f"The graph at {uri} cannot be read: .*Check the address"):
        load_artworks(uri, image_folder=images)


def test_a_server_that_goes_away_while_it_answers(images):
    with BoltServer(answers(tags=[[NAMES[0], f"tag {index}"] for index in range(50)])) as server:
        server.drop_after = 20
        with pytest.raises(DataError, match="cannot be read"):
            load_artworks(f"bolt://{server.address}", image_folder=images)


def test_a_query_that_the_server_refuses(images):
    with BoltServer({}) as server, pytest.raises(DataError, match=r"cannot be read: .*SyntaxError"):
        load_artworks(f"bolt://{server.address}", image_folder=images)


@pytest.mark.parametrize(
    ("names", "edges", "message"),
    [
        ([*NAMES, None], {}, "1 nodes have no property 'name' with a string"),
        ([*NAMES, 12], {}, "1 nodes have no property 'name' with a string"),
        (NAMES, {"tags": [[NAMES[0], None], [NAMES[0], ""]]}, "2 nodes have no property 'name'"),
        (NAMES, {"tags": [[NAMES[0], 7]]}, "1 nodes have no property 'name'"),
        ([*NAMES, NAMES[0]], {}, "two artworks called 'zoë_la-mer_1.jpg'"),
        ([*NAMES, "none.jpg"], {}, "there is no picture .*none.jpg"),
        ([*NAMES, "../secret.jpg"], {}, "'../secret.jpg' lies outside"),
        ([*NAMES, "https://example.org/a.jpg"], {}, "is an address, and readers fetch nothing"),
        ([], {}, "has no rows"),
        (NAMES, {"artist": [[NAMES[0], "ada"], [NAMES[0], "bea"]]}, "'zoë_la-mer_1.jpg' has 2 labels for the task"),
    ],
)
def test_a_graph_with_a_wrong_node(images, names, edges, message):
    with BoltServer(answers(names, **edges)) as server, pytest.raises(DataError, match=message) as error:
        load_artworks(f"bolt://{server.address}", image_folder=images)
    assert server.address in str(error.value)


def test_the_pictures_folder_is_needed():
    with pytest.raises(DataError, match=r"bolt://127.0.0.1:1 holds no pictures: name their folder by image_folder"):
        load_artworks("bolt://127.0.0.1:1")


def test_a_pictures_folder_that_is_not_there(tmp_path):
    with pytest.raises(DataError, match=r"There is no folder .*nowhere.*image_folder"):
        load_artworks("bolt://127.0.0.1:1", image_folder=tmp_path / "nowhere")
