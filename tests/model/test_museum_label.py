"""`describe`: answers and the sentences that a curator would write for them."""

import json

import pytest

from artgraph_vit import describe

ISSUE = "Attributed to Claude Monet; a landscape in the Impressionist style; oil on canvas; with trees and water."


def entry(label: str, score: float = 0.9, **more) -> dict:
    return {"label": label, "score": score, **more}


OTHER = entry("other", means="another artist than the 3 that are named")


def answer(**tasks) -> dict:
    """An answer of a pipeline: each task with its labels, the best first."""

    def entries(labels):
        ranked = enumerate(labels, start=1)
        return [label if isinstance(label, dict) else entry(label, 0.9 / rank) for rank, label in ranked]

    return {name: entries(labels) for name, labels in tasks.items()}


def test_the_sentence_of_the_issue():
    prediction = answer(
        artist=["claude-monet", "alfred-sisley", "other"],
        style=["impressionism", "realism"],
        genre=["landscape", "marina"],
        tags=["Tree", "Water"],
        media=["oil", "canvas"],
    )
    assert describe(prediction) == ISSUE
    assert describe(dict(reversed(prediction.items()))) == ISSUE  # whatever the order of the tasks
    assert describe(json.loads(json.dumps(prediction))) == ISSUE


@pytest.mark.parametrize(
    ("style", "adjective"),
    [
        ("impressionism", "Impressionist"),
        ("Impressionism", "Impressionist"),
        ("post-impressionism", "Post-Impressionist"),
        ("Post-Impressionism", "Post-Impressionist"),
        ("abstract expressionism", "Abstract Expressionist"),
        ("romanticism", "Romantic"),
        ("neoclassicism", "Neoclassical"),
        ("academicism", "Academic"),
        ("symbolism", "Symbolist"),
        ("mannerism (late renaissance)", "Mannerist"),
        ("northern renaissance", "Northern Renaissance"),
        ("art nouveau (modern)", "Art Nouveau"),
        ("ukiyo-e", "Ukiyo-e"),
        ("baroque", "Baroque"),
        ("rococo", "Rococo"),
    ],
)
def test_styles_become_adjectives(style, adjective):
    assert describe(answer(style=[style])) == f"In the {adjective} style."
    assert describe(answer(style=[style], genre=["portrait"])) == f"A portrait in the {adjective} style."


@pytest.mark.parametrize(
    ("artist", "name"),
    [
        ("claude-monet", "Claude Monet"),
        ("vincent-van-gogh", "Vincent van Gogh"),
        ("pieter-bruegel-the-elder", "Pieter Bruegel the Elder"),
        ("leonardo-da-vinci", "Leonardo da Vinci"),
        ("giotto", "Giotto"),
        ("el-greco", "El Greco"),
        ("le-corbusier", "Le Corbusier"),
        ("Claude Monet", "Claude Monet"),
        ("CLAUDE MONET", "CLAUDE MONET"),
        ("Toulouse-Lautrec", "Toulouse-Lautrec"),
        ("master of the legend of saint lucy", "master of the legend of saint lucy"),
        ("葛飾北斎", "葛飾北斎"),
    ],
)
def test_slugs_become_names_and_names_stay(artist, name):
    assert describe(answer(artist=[artist])) == f"Attributed to {name}."


@pytest.mark.parametrize(
    ("genre", "noun"),
    [
        ("landscape", "A landscape"),
        ("illustration", "An illustration"),
        ("abstract", "An abstract work"),
        ("still life", "A still life"),
        ("self-portrait", "A self portrait"),
        ("nude painting (nu)", "A nude painting"),
    ],
)
def test_genres(genre, noun):
    assert describe(answer(genre=[genre])) == f"{noun}."
    assert describe(answer(genre=[genre], style=["cubism"])) == f"{noun} in the Cubist style."


@pytest.mark.parametrize(
    ("media", "words"),
    [
        (["canvas", "oil"], "Oil on canvas"),
        (["oil", "tempera", "panel"], "Oil and tempera on panel"),
        (["ink"], "Ink"),
        (["canvas"], "On canvas"),
        (["oil", "gouache", "ink"], "Oil, gouache and ink"),
        (["oil", "canvas", "cardboard"], "Oil on canvas and cardboard"),
    ],
)
def test_media(media, words):
    assert describe(answer(media=media)) == f"{words}."


@pytest.mark.parametrize(
    ("tags", "words"),
    [
        (["Tree"], "trees"),
        (["Flower", "boat", "house"], "flowers, boats and houses"),
        (["female-portraits"], "female portraits"),
        (["saints-and-apostles", "Sky"], "saints and apostles and sky"),
        (["church", "box", "bush"], "churches, boxes and bushes"),
        (["Lady", "city", "boy"], "ladies, cities and boys"),
        (["Gentleman", "child", "woman"], "gentlemen, children and women"),
        (["people", "men", "children"], "people, men and children"),
        (["building", "king"], "buildings and kings"),
        (["snow", "Mythology", "impressionism"], "snow, mythology and impressionism"),
        (["Christianity"], "Christianity"),
        ([f"{letter}at" for letter in "abcdefghij"], "aats, bats, cats, dats and eats"),
        (["Unknown tag", "rat"], "rats"),
    ],
)
def test_tags_are_plurals_and_five_at_most(tags, words):
    assert describe(answer(tags=tags)) == f"With {words}."


@pytest.mark.parametrize(
    ("missing", "sentence"),
    [
        ("artist", "A landscape in the Impressionist style; oil on canvas; with trees."),
        ("genre", "Attributed to Claude Monet; in the Impressionist style; oil on canvas; with trees."),
        ("style", "Attributed to Claude Monet; a landscape; oil on canvas; with trees."),
        ("media", "Attributed to Claude Monet; a landscape in the Impressionist style; with trees."),
        ("tags", "Attributed to Claude Monet; a landscape in the Impressionist style; oil on canvas."),
    ],
)
def test_what_is_not_there_is_left_out(missing, sentence):
    prediction = answer(
        artist=["claude-monet"], style=["impressionism"], genre=["landscape"], tags=["Tree"], media=["oil", "canvas"]
    )
    assert describe({name: entries for name, entries in prediction.items() if name != missing}) == sentence
    assert describe({**prediction, missing: []}) == sentence


@pytest.mark.parametrize("unknown", ["Unknown Artist", "unknown-artist", "unknown", "Unknown Genre"])
def test_unknown_is_left_out_and_the_second_best_does_not_take_its_place(unknown):
    prediction = {"artist": [entry(unknown, 0.9), entry("claude-monet", 0.05)], **answer(genre=["portrait"])}
    assert describe(prediction) == "A portrait."
    assert describe({**prediction, "genre": [entry(unknown, 0.8), entry("portrait", 0.1)]}) == (
        "Nothing is known of this picture."
    )


def test_of_several_labels_the_known_are_said():
    assert describe(answer(media=["unknown", "oil"], tags=["unknown", "Tree"])) == "Oil; with trees."


def test_other_is_nobody_in_particular():
    who = "By an artist whom the model does not name"
    assert describe(answer(artist=[OTHER, "claude-monet"])) == f"{who}."
    assert describe(answer(artist=[OTHER], genre=[OTHER], style=["cubism"])) == f"{who}; in the Cubist style."
    assert describe(answer(artist=["claude-monet", OTHER])) == "Attributed to Claude Monet."


def test_nothing_is_known():
    for prediction in ({}, answer(artist=[], tags=[]), {"file": "a.jpg"}):
        assert describe(prediction) == "Nothing is known of this picture."


def test_a_picture_that_was_not_read():
    assert describe({"error": "image file is truncated"}) == "This picture cannot be read: image file is truncated."
    assert describe({"file": "a.jpg", "error": "there is no such file"}).endswith("there is no such file.")


def test_other_tasks_than_the_five_and_the_file_of_a_folder():
    prediction = answer(
        school=["Barbizon school"], artist=["claude-monet"], art_period=["19th century"], tags=["sea"], mood=[]
    )
    sentence = "Attributed to Claude Monet; with sea; school: Barbizon school; art period: 19th century."
    assert describe(prediction) == sentence
    assert describe({"file": "monet.jpg", **prediction}) == sentence


HOSTILE = ["<script>alert(1)</script>", "{0.__class__}", "%s %n", "$(reboot)", "\\1 \\g<0>", "a; b. c", "(", "[x](y)"]


@pytest.mark.parametrize("label", HOSTILE)
def test_a_label_stays_a_text(label):
    assert describe(answer(artist=[label])) == f"Attributed to {label}."
    assert describe(answer(tags=[label])) == f"With {label}s."
    assert describe(answer(tags=["sea"], media=[label])) == f"{label[0].upper()}{label[1:]}; with sea."
    assert describe(answer(period=[label])) == f"Period: {label}."
    assert describe(answer(genre=[label], style=[label])).endswith(" style.")


def test_the_answer_is_not_changed():
    prediction = answer(artist=["claude-monet"], tags=["Tree", "unknown"])
    before = json.dumps(prediction)
    describe(prediction)
    assert json.dumps(prediction) == before
