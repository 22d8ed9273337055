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


SENTENCES = [
    # styles become adjectives
    ("style", "impressionism", "In the Impressionist style."),
    ("style", "Post-Impressionism", "In the Post-Impressionist style."),
    ("style", "abstract expressionism", "In the Abstract Expressionist style."),
    ("style", "romanticism", "In the Romantic style."),
    ("style", "neoclassicism", "In the Neoclassical style."),
    ("style", "academicism", "In the Academic style."),
    ("style", "symbolism", "In the Symbolist style."),
    ("style", "mannerism (late renaissance)", "In the Mannerist style."),
    ("style", "northern renaissance", "In the Northern Renaissance style."),
    ("style", "art nouveau (modern)", "In the Art Nouveau style."),
    ("style", "ukiyo-e", "In the Ukiyo-e style."),
    ("style", "baroque", "In the Baroque style."),
    # slugs become names, and names stay
    ("artist", "claude-monet", "Attributed to Claude Monet."),
    ("artist", "vincent-van-gogh", "Attributed to Vincent van Gogh."),
    ("artist", "pieter-bruegel-the-elder", "Attributed to Pieter Bruegel the Elder."),
    ("artist", "leonardo-da-vinci", "Attributed to Leonardo da Vinci."),
    ("artist", "giotto", "Attributed to Giotto."),
    ("artist", "le-corbusier", "Attributed to Le Corbusier."),
    ("artist", "CLAUDE MONET", "Attributed to CLAUDE MONET."),
    ("artist", "Toulouse-Lautrec", "Attributed to Toulouse-Lautrec."),
    ("artist", "master of the legend of saint lucy", "Attributed to master of the legend of saint lucy."),
    ("artist", "葛飾北斎", "Attributed to 葛飾北斎."),
    ("genre", "landscape", "A landscape."),
    ("genre", "illustration", "An illustration."),
    ("genre", "abstract", "An abstract work."),
    ("genre", "self-portrait", "A self portrait."),
    ("genre", "nude painting (nu)", "A nude painting."),
    ("media", "canvas oil", "Oil on canvas."),
    ("media", "oil tempera panel", "Oil and tempera on panel."),
    ("media", "ink", "Ink."),
    ("media", "canvas", "On canvas."),
    ("media", "oil gouache ink", "Oil, gouache and ink."),
    ("media", "oil canvas cardboard", "Oil on canvas and cardboard."),
    # tags become plurals, five at most
    ("tags", "Flower boat house", "With flowers, boats and houses."),
    ("tags", "female-portraits", "With female portraits."),
    ("tags", "saints-and-apostles Sky", "With saints and apostles and sky."),
    ("tags", "church box bush", "With churches, boxes and bushes."),
    ("tags", "Lady city boy", "With ladies, cities and boys."),
    ("tags", "Gentleman child woman", "With gentlemen, children and women."),
    ("tags", "people men children", "With people, men and children."),
    ("tags", "building king", "With buildings and kings."),
    ("tags", "snow Mythology impressionism", "With snow, mythology and impressionism."),
    ("tags", "Christianity", "With Christianity."),
    ("tags", "aat bat cat dat eat fat gat", "With aats, bats, cats, dats and eats."),
    ("tags", "Unknown-tag rat", "With rats."),
]


@pytest.mark.parametrize(("task", "labels", "sentence"), SENTENCES)
def test_labels_in_words(task, labels, sentence):
    assert describe(answer(**{task: labels.split() if task in ("tags", "media") else [labels]})) == sentence


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


NOBODY = "By an artist whom the model does not name"
NOTHING = "Nothing is known of this picture."
OTHERS = answer(
    school=["Barbizon school"], artist=["claude-monet"], art_period=["19th century"], tags=["sea"], mood=[]
)
IN_OTHERS = "Attributed to Claude Monet; with sea; school: Barbizon school; art period: 19th century."


@pytest.mark.parametrize(
    ("prediction", "sentence"),
    [
        (answer(media=["unknown", "oil"], tags=["unknown", "Tree"]), "Oil; with trees."),
        (answer(artist=[OTHER, "claude-monet"]), f"{NOBODY}."),
        (answer(artist=[OTHER], genre=[OTHER], style=["cubism"]), f"{NOBODY}; in the Cubist style."),
        (answer(artist=["claude-monet", OTHER]), "Attributed to Claude Monet."),
        ({}, NOTHING),
        (answer(artist=[], tags=[]), NOTHING),
        ({"file": "a.jpg"}, NOTHING),
        ({"error": "image file is truncated"}, "This picture cannot be read: image file is truncated."),
        ({"file": "a.jpg", "error": "there is no such file"}, "This picture cannot be read: there is no such file."),
        (OTHERS, IN_OTHERS),
        ({"file": "monet.jpg", **OTHERS}, IN_OTHERS),
    ],
)
def test_unknown_and_other_labels_errors_other_tasks_and_files(prediction, sentence):
    assert describe(prediction) == sentence


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
