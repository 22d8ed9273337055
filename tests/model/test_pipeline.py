"""ArtGraphPipeline against image processor, backbone and heads called by hand, and heads whose answers are known."""

import io
import itertools
import json
import math
import re
import threading
import time
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import datasets
import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoImageProcessor, ConvNextConfig, ViTConfig, ViTImageProcessor, pipeline
from transformers.pipelines.pt_utils import KeyDataset

from artgraph_vit import ArtGraphPipeline, ArtGraphViTForImageClassification, Task
from artgraph_vit.model.tasks import MULTI_LABEL, SINGLE_LABEL
from tests.conftest import TINY
from tests.made_pictures import bad_pictures_in, encoded, noise

ARTISTS = {"ada": 0.1, "bea": 0.2, "cleo": 0.3, "other": 0.4}
GENRES = {"landscape": 0.2, "portrait": 0.7, "still life": 0.1}
TAGS = {"Tree": 0.9, "boat": 0.2, "female-portraits": 0.6, "sea": 0.05, "sky": 0.4}
ROW_FEATURES = datasets.Features({"image": datasets.Image()})


def painted(number: int) -> Image.Image:
    """Pictures of 20 x 12 pixels, none like another."""
    return Image.fromarray(np.random.default_rng(number).integers(0, 256, (12, 20, 3), dtype=np.uint8))


def png(picture: Image.Image, **options) -> bytes:
    return encoded(picture, "PNG", **options)["bytes"]


@pytest.fixture
def processor() -> ViTImageProcessor:
    return ViTImageProcessor(size={"height": 16, "width": 16})


@pytest.fixture
def model(build_model) -> ArtGraphViTForImageClassification:
    return build_model()


@pytest.fixture
def pipe(model, processor) -> ArtGraphPipeline:
    return ArtGraphPipeline(model, processor)


@pytest.fixture
def by_hand(model, processor):
    """`by_hand(pictures)`: what a pipeline answers, from processor, backbone and heads one by one."""

    @torch.no_grad()
    def answer(pictures: list[Image.Image]) -> list[dict]:
        answers = []
        for picture in pictures:
            pixel_values = processor(picture.convert("RGB"), return_tensors="pt")["pixel_values"]
            token = model.backbone(pixel_values).last_hidden_state[0, 0]
            answer = {}
            for task in model.config.tasks:
                logits = (model.heads[task.name].weight @ token + model.heads[task.name].bias).double().numpy()
                if task.is_multi_label:
                    scores = 1 / (1 + np.exp(-logits))
                    kept = [label for label in range(task.num_labels) if scores[label] > 0.5]
                else:
                    scores = np.exp(logits) / np.exp(logits).sum()
                    kept = list(range(task.num_labels))
                kept.sort(key=lambda label: -scores[label])
                answer[task.name] = [(task.labels[label], scores[label]) for label in kept]
            answers.append(answer)
        return answers

    return answer


@pytest.fixture
def known(build_model, processor):
    """`known(**config_options)`: a pipeline that gives every picture the scores at the head of this file."""

    def build(**options) -> ArtGraphPipeline:
        model = build_model(**options)
        with torch.no_grad():
            for head in model.heads.values():
                head.weight.zero_()
            model.heads["artist"].bias.copy_(torch.tensor(list(ARTISTS.values())).log())
            model.heads["genre"].bias.copy_(torch.tensor(list(GENRES.values())).log())
            model.heads["tags"].bias.copy_(torch.tensor(list(TAGS.values())).logit())
        return ArtGraphPipeline(model, processor)

    return build


def assert_same(answers, expected, tolerance=1e-5):
    answers = list(answers)
    assert len(answers) == len(expected)
    for answer, wanted in zip(answers, expected, strict=True):
        assert list(answer) == list(wanted)
        for name, entries in answer.items():
            assert [entry["label"] for entry in entries] == [label for label, _ in wanted[name]]
            scores = [score for _, score in wanted[name]]
            assert [entry["score"] for entry in entries] == pytest.approx(scores, abs=tolerance)


def labels(entries) -> list[str]:
    return [entry["label"] for entry in entries]


# ---- forms of one picture, and of several ----


def lying(picture: Image.Image) -> Image.Image:
    """Stored on its side, with a note of which side is up."""
    exif = Image.Exif()
    exif[0x0112] = 6
    return Image.open(io.BytesIO(png(picture.transpose(Image.Transpose.ROTATE_90), exif=exif)))


PICTURE = painted(1)
PIXELS = np.asarray(PICTURE)
GREY = PICTURE.convert("L")
WHITE = Image.new("RGB", PICTURE.size, "white")
# What is given, of PICTURE or the file in which it is, and the picture that is seen.
ONE_PICTURE = {
    "path": (lambda file: str(file), PICTURE),
    "Path": (lambda file: file, PICTURE),
    "bytes": (lambda file: png(PICTURE), PICTURE),
    "bytearray": (lambda file: bytearray(png(PICTURE)), PICTURE),
    "memoryview": (lambda file: memoryview(png(PICTURE)), PICTURE),
    "PIL": (lambda file: PICTURE, PICTURE),
    "opened": (lambda file: Image.open(file), PICTURE),
    "on its side": (lambda file: lying(PICTURE), PICTURE),
    "transparent": (lambda file: Image.merge("RGBA", (*PICTURE.split(), Image.new("L", PICTURE.size))), WHITE),
    "array": (lambda file: PIXELS, PICTURE),
    "strided array": (lambda file: PIXELS[:, ::-1], PICTURE.transpose(Image.Transpose.FLIP_LEFT_RIGHT)),
    "grey array": (lambda file: np.asarray(GREY), GREY),
    "transparent array": (lambda file: np.dstack([PIXELS, np.zeros_like(PIXELS[..., 0])]), WHITE),
    "tensor": (lambda file: torch.tensor(PIXELS), PICTURE),
    "tensor, colours first": (lambda file: torch.tensor(PIXELS.transpose(2, 0, 1)), PICTURE),
    "undecoded bytes": (lambda file: {"bytes": png(PICTURE), "path": None}, PICTURE),
    "undecoded path": (lambda file: {"bytes": None, "path": str(file)}, PICTURE),
    "row": (lambda file: {"image": PICTURE, "artist": "ada"}, PICTURE),
}


@pytest.mark.parametrize(("given", "seen"), ONE_PICTURE.values(), ids=ONE_PICTURE)
def test_one_picture_in_any_form(given, seen, pipe, by_hand, tmp_path):
    PICTURE.save(tmp_path / "picture.png")
    image = given(tmp_path / "picture.png")
    was = (image.mode, image.size) if isinstance(image, Image.Image) else None
    answer = pipe(image)
    assert isinstance(answer, dict)
    assert_same([answer], by_hand([seen]))
    assert pipe([image]) == [answer]
    assert was is None or (image.mode, image.size) == was


def opened_rows(encoded):
    for data in encoded:
        yield {"image": Image.open(io.BytesIO(data))}


def stored(*images) -> datasets.Dataset:
    return datasets.Dataset.from_dict({"image": list(images)}, ROW_FEATURES)


SEVERAL = {
    "list": lambda pictures, folder: pictures,
    "tuple": lambda pictures, folder: tuple(pictures),
    "array": lambda pictures, folder: np.stack([np.asarray(picture) for picture in pictures]),
    "tensor": lambda pictures, folder: torch.tensor(np.stack([np.asarray(picture) for picture in pictures])),
    "generator": lambda pictures, folder: (picture for picture in pictures),
    "folder": lambda pictures, folder: folder,
    "folder as text": lambda pictures, folder: str(folder),
    "dataset": lambda pictures, folder: stored(*pictures),
    "column": lambda pictures, folder: stored(*pictures)["image"],
    "KeyDataset": lambda pictures, folder: KeyDataset(stored(*pictures), "image"),
    "paths of a stream": lambda pictures, folder: datasets.Dataset.from_dict(
        {"image": [str(file) for file in sorted(folder.iterdir())]}
    ).to_iterable_dataset(),
    "stream without features": lambda pictures, folder: datasets.IterableDataset.from_generator(
        opened_rows, gen_kwargs={"encoded": [png(picture) for picture in pictures]}
    ),
}


@pytest.mark.parametrize("form", SEVERAL)
def test_several_pictures_in_any_form(form, pipe, by_hand, tmp_path):
    pictures = [painted(number) for number in range(4)]
    for number, picture in enumerate(pictures):
        picture.save(tmp_path / f"{number}.png")
    answers = list(pipe(SEVERAL[form](pictures, tmp_path), batch_size=3))
    if form.startswith("folder"):
        assert [answer.pop("file") for answer in answers] == [str(tmp_path / f"{number}.png") for number in range(4)]
    assert_same(answers, by_hand(pictures))


@pytest.mark.parametrize(("given", "batch_size"), [("at the call", 3), ("at the call", 50), ("when made", 7)])
def test_batches_change_nothing_and_keep_the_order(batch_size, given, model, processor, by_hand):
    pictures = [painted(number) for number in range(7)]
    made, called = ({}, {"batch_size": batch_size}) if given == "at the call" else ({"batch_size": batch_size}, {})
    sizes = []
    handle = model.register_forward_pre_hook(
        lambda module, args, kwargs: sizes.append(len(kwargs["pixel_values"])), with_kwargs=True
    )
    answers = ArtGraphPipeline(model, processor, **made)(pictures, **called)
    handle.remove()
    assert sizes == {3: [3, 3, 1], 50: [7], 7: [7]}[batch_size]
    assert_same(answers, by_hand(pictures))


def test_no_picture_gives_no_answer(pipe):
    for images in ([], (), np.zeros((0, 8, 8, 3), np.uint8), iter([])):
        assert list(pipe(images)) == []


@pytest.mark.parametrize(
    ("images", "why"),
    [
        (5, "int is no form of a picture"),
        (None, "NoneType is no form of a picture"),
        (io.BytesIO(b"\n\n"), "BytesIO is no form of a picture"),  # its lines are no pictures either
        ([{"picture": painted(0)}], "A row with picture has no picture: call its column image"),
    ],
)
def test_what_is_no_form_of_a_picture(images, why, pipe):
    with pytest.raises(TypeError, match=f"^{why}.*$"):
        pipe(images)


@pytest.mark.parametrize(
    ("image", "why"),
    [
        (5, "int is no form of a picture"),
        (np.zeros((8, 8, 3)), "float64 and shape"),
        (np.zeros((8, 8), bool), "bool and shape"),
        (np.zeros((2, 8, 9), np.uint8), r"shape \(2, 8, 9\)"),
        (np.zeros((8, 8, 1), np.uint8), r"shape \(8, 8, 1\)"),
        (np.zeros(8, np.uint8), r"shape \(8,\)"),
        (torch.zeros(3, 8, 8), "float32 and shape"),
    ],
)
def test_what_is_no_picture_has_an_entry_in_a_list(image, why, pipe):
    good, bad = pipe([painted(0), image])
    assert good == pipe(painted(0))
    assert re.search(why, bad["error"])
    if not isinstance(image, int):
        with pytest.raises(ValueError, match=why):
            pipe(image)


# ---- datasets, streams and generators ----


@pytest.mark.parametrize("is_decoded", [True, False])
@pytest.mark.parametrize(("is_stream", "batch_size"), [(True, 1), (False, 3)])
def test_a_bad_picture_in_a_dataset_does_not_end_the_pass(is_decoded, is_stream, batch_size, pipe, by_hand):
    good = [painted(number) for number in range(4)]
    data = [{"bytes": png(picture), "path": None} for picture in good]
    cut = {"bytes": data[0]["bytes"][:200], "path": None}
    dataset = stored(data[0], data[1], cut, data[2], None, data[3])
    dataset = dataset if is_decoded else dataset.cast_column("image", datasets.Image(decode=False))
    answers = list(pipe(dataset.to_iterable_dataset(num_shards=2) if is_stream else dataset, batch_size=batch_size))
    assert [list(answer) == ["error"] for answer in answers] == [False, False, True, False, True, False]
    assert_same([answers[place] for place in (0, 1, 3, 5)], by_hand(good))


@pytest.mark.parametrize("batch_size", [1, 4])
def test_a_stream_is_read_no_further_than_it_is_answered(batch_size, pipe):
    taken = []

    def endless():
        for number in itertools.count():
            taken.append(number)
            yield painted(number % 5)

    answers = pipe(endless(), tasks="artist", batch_size=batch_size)
    assert len(taken) <= 1
    for number in range(6):
        assert "artist" in next(answers)
        assert len(taken) <= batch_size * (number // batch_size + 2)


def test_a_worker_gives_the_same(pipe, by_hand):
    pictures = [painted(number) for number in range(5)]
    assert_same(pipe(iter(pictures), num_workers=1, batch_size=2), by_hand(pictures))


# ---- options ----


def test_scores_and_labels_in_closed_form(known):
    answer = known()(painted(0))
    assert {entry["label"]: entry["score"] for entry in answer["artist"]} == pytest.approx(ARTISTS)
    assert labels(answer["artist"]) == ["other", "cleo", "bea", "ada"]
    assert labels(answer["genre"]) == ["portrait", "landscape", "still life"]
    assert {entry["label"]: entry["score"] for entry in answer["tags"]} == pytest.approx(
        {"Tree": 0.9, "female-portraits": 0.6}
    )
    assert labels(answer["tags"]) == ["Tree", "female-portraits"]


def test_top_k_of_a_single_label_task_alone_is_five_by_default(known, build_model, processor):
    for top_k in (1, 3, 100):
        answer = known()(painted(0), top_k=top_k)
        assert labels(answer["artist"]) == ["other", "cleo", "bea", "ada"][:top_k]
        assert len(answer["tags"]) == 2
    task = Task("artist", SINGLE_LABEL, tuple("abcdefgh"))
    pipe = ArtGraphPipeline(build_model(tasks=[task]), processor)
    assert len(pipe(painted(0))["artist"]) == 5
    assert len(pipe(painted(0), top_k=8)["artist"]) == 8


def test_only_the_tasks_asked_for(pipe):
    for asked, names in (("tags", ["tags"]), (["genre", "artist"], ["genre", "artist"]), ([], [])):
        answer = pipe(painted(0), tasks=asked)
        assert list(answer) == names
        assert answer == {name: pipe(painted(0))[name] for name in names}


@pytest.mark.parametrize(
    ("saved", "given", "tags"),
    [
        (None, None, ["Tree", "female-portraits"]),
        (0.3, None, ["Tree", "female-portraits", "sky"]),
        (0.95, None, []),
        ([0.95, 0.1, 0.7, 0.01, 0.3], None, ["sky", "boat", "sea"]),
        ([0.95, 0.1, 0.7, 0.01, 0.3], 0.5, ["Tree", "female-portraits"]),
        (0.3, 0.7, ["Tree"]),
        (0.3, {"tags": 0.1}, ["Tree", "female-portraits", "sky", "boat"]),
        (0.3, {}, ["Tree", "female-portraits", "sky"]),
    ],
)
def test_labels_above_their_thresholds(saved, given, tags, known):
    pipe = known(thresholds={} if saved is None else {"tags": saved})
    assert labels(pipe(painted(0), threshold=given)["tags"]) == tags
    assert labels(pipe([painted(0)] * 3, threshold=given, batch_size=2)[2]["tags"]) == tags


def test_options_given_when_it_is_made_hold_until_a_call_says_otherwise(model, processor):
    options = {"tasks": ["artist", "tags"], "top_k": 2, "threshold": 0.01}
    pipe, plain = ArtGraphPipeline(model, processor, **options), ArtGraphPipeline(model, processor)
    for called in ({}, {"top_k": 1, "tasks": "artist"}, {}):
        assert pipe(painted(0), **called) == plain(painted(0), **options | called)


@pytest.mark.parametrize(
    ("option", "value", "why"),
    [
        ("tasks", "artists", "has no task 'artists': its tasks are artist, genre, tags"),
        ("tasks", ["artist", "x"], "has no task 'x'"),
        *(("top_k", value, f"top_k={value}:") for value in (0, 2.0, True)),
        *(("threshold", value, f"threshold={value}:") for value in (0, 1.0, math.nan)),
        ("threshold", "high", "threshold='high'"),
        ("threshold", {"artist": 0.5}, "'artist', which is not a multi-label task"),
        ("threshold", {"tags": 2}, "threshold=2"),
    ],
)
def test_a_wrong_option_is_one_sentence(option, value, why, pipe, model, processor):
    for use in (lambda **options: pipe(painted(0), **options), partial(ArtGraphPipeline, model, processor)):
        with pytest.raises(ValueError, match=rf"^.*{why}.*\.$"):
            use(**{option: value})


def test_an_option_that_there_is_not_is_refused(pipe):
    with pytest.raises(TypeError, match="topk"):
        pipe(painted(0), topk=3)


def test_other_is_said_plainly(known, build_model, processor):
    answer = known()(painted(0))
    assert {entry["label"]: entry.get("means") for entry in answer["artist"]} == {
        "other": "another artist than the 3 that are named",
        **dict.fromkeys(["ada", "bea", "cleo"]),
    }
    assert not [entry for name in ("genre", "tags") for entry in answer[name] if "means" in entry]
    # a label that somebody called so, and that does not stand for rare ones, is one like all others
    task = Task("genre", SINGLE_LABEL, ("landscape", "other"))
    entries = ArtGraphPipeline(build_model(tasks=[task]), processor)(painted(0))["genre"]
    assert [set(entry) for entry in entries] == [{"label", "score"}] * 2


def test_answers_are_plain_json(pipe):
    answers = [*pipe([painted(0), b"no picture"]), pipe(painted(1), threshold=0.01)]
    assert json.loads(json.dumps(answers)) == answers


# ---- pictures that cannot be read ----


@pytest.fixture
def bad_pictures(tmp_path) -> dict:
    bad = bad_pictures_in(tmp_path)
    undecoded = {name: bad[name]["path"] for name in ("text", "empty", "missing")}
    opened = Image.open(io.BytesIO(bad["truncated"]["bytes"]))
    closed = Image.open(io.BytesIO(png(painted(0))))
    closed.close()
    return {
        **bad,
        **{f"path of {name}": path for name, path in undecoded.items()},
        "no bytes": b"",
        "cut": bad["truncated"]["bytes"],
        "opened and cut": opened,
        "opened and cut png": Image.open(io.BytesIO(png(noise())[:3000])),
        "closed": closed,
        "without pixels": Image.new("RGB", (0, 0)),
        "array without pixels": np.zeros((0, 5, 3), np.uint8),
        "path without an end": "x" * 100_000,
        "path of nothing": "",
    }


def test_a_bad_picture_is_an_entry_of_its_own_in_a_list_and_an_error_alone(bad_pictures, pipe, by_hand):
    bad = [*bad_pictures.values(), None, {"image": None}]
    good = [painted(number) for number in range(len(bad))]
    answers = pipe([image for pair in zip(good, bad, strict=True) for image in pair], batch_size=4)
    assert_same(answers[::2], by_hand(good))
    for answer in answers[1::2]:
        assert list(answer) == ["error"]
        assert re.search(r"[^.]$", answer["error"])
    for name, image in bad_pictures.items():
        with pytest.raises(ValueError, match=r"^The picture cannot be read: .+\.$"):
            pytest.fail(f"{name}: {pipe(image)}")


def test_a_folder_is_read_with_the_folders_in_it_and_must_hold_a_picture(pipe, by_hand, tmp_path):
    pictures = [painted(number) for number in range(3)]
    (tmp_path / "b" / "c").mkdir(parents=True)
    (tmp_path / "folder.png").mkdir()
    pictures[0].save(tmp_path / "a.PNG")
    pictures[1].save(tmp_path / "b" / "c" / "d.bmp")
    pictures[2].save(tmp_path / "z.png")
    (tmp_path / "notes.txt").write_text("no picture, and not called one")
    (tmp_path / "e.jpg").write_text("no picture, but called one")
    answers = pipe(tmp_path, batch_size=2)
    names = ("a.PNG", "b/c/d.bmp", "e.jpg", "z.png")
    assert [answer.pop("file") for answer in answers] == [str(tmp_path / name) for name in names]
    assert list(answers.pop(2)) == ["error"]
    assert_same(answers, by_hand(pictures))
    (tmp_path / "none").mkdir()
    with pytest.raises(ValueError, match=r"holds no picture \(.*\.jpg.*\)\.$"):
        pipe(tmp_path / "none")


# ---- addresses ----


@pytest.fixture
def site(monkeypatch):
    """`site.url`, whose /picture.png is `painted(4)`, /slow answers late and all else is not there; `site.asked`."""

    class Site(BaseHTTPRequestHandler):
        def do_GET(self):
            asked.append(self.path)
            if self.path == "/slow":
                time.sleep(1)
            found = self.path == "/picture.png"
            self.send_response(200 if found else 404)
            self.end_headers()
            self.wfile.write(png(painted(4)) if found else b"<html>not here</html>")

        def log_message(self, *_):
            pass

    asked: list[str] = []
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with ThreadingHTTPServer(("127.0.0.1", 0), Site) as server:
        server.url, server.asked = f"http://127.0.0.1:{server.server_port}", asked
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


def test_an_address_is_fetched_and_one_that_gives_no_picture_is_an_entry(pipe, site, by_hand):
    address = f"{site.url}/picture.png"
    assert_same([pipe(address)], by_hand([painted(4)]))
    assert torch.equal(pipe.embed(address), pipe.embed(painted(4)))
    first, missing, row, refused = pipe(
        [address, f"{site.url}/no.png", {"image": address}, "http://127.0.0.1:9/a.png"]
    )
    assert_same([first, row], by_hand([painted(4)] * 2))
    assert missing == {"error": f"{site.url}/no.png was not fetched: what it gives is no picture"}
    assert refused["error"].startswith("http://127.0.0.1:9/a.png was not fetched: ")
    with pytest.raises(ValueError, match=r"^The picture cannot be read: http.*/no.png was not fetched: what it gives"):
        pipe(f"{site.url}/no.png")


def test_a_server_is_not_waited_for_longer_than_asked(pipe, site):
    start = time.monotonic()
    assert "timed out" in pipe([f"{site.url}/slow"], timeout=0.2)[0]["error"]
    assert time.monotonic() - start < 0.9


def test_a_stored_picture_whose_path_is_an_address_is_not_fetched(pipe, site, tmp_path):
    """This is how the page and bulk prediction hand over what strangers name."""
    address = f"{site.url}/picture.png"
    for form in ({"path": address}, {"path": address, "bytes": None}, {"image": {"path": address}}, f"ftp{address}"):
        assert pipe([form])[0] == {"error": "there is no such file"}
    assert site.asked == []


# ---- vectors ----


def test_vectors_are_the_pooled_ones_at_length_one(pipe, model, processor, tmp_path):
    pictures = [painted(number) for number in range(5)]
    with torch.no_grad():
        pixel_values = processor(pictures, return_tensors="pt")["pixel_values"]
        tokens = model.backbone(pixel_values).last_hidden_state[:, 0].numpy()
    expected = tokens / np.sqrt((tokens**2).sum(1, keepdims=True))
    for number, picture in enumerate(pictures):
        picture.save(tmp_path / f"{number}.png")
    for images in (pictures, iter(pictures), stored(*pictures), tmp_path):
        vectors = pipe.embed(images, batch_size=2)
        assert vectors.dtype == torch.float32
        assert vectors.numpy() == pytest.approx(expected, abs=1e-5)
    assert pipe.embed(pictures[0]).numpy() == pytest.approx(expected[0], abs=1e-5)  # one picture, one vector
    assert pipe.embed(pictures[:1]).shape == (1, 16)
    assert "artist" in pipe(pictures[0])  # and a call gives labels as before


def test_vectors_of_nothing_and_of_what_cannot_be_read(pipe, tmp_path):
    assert pipe.embed([]).shape == (0, 16)
    with pytest.raises(ValueError, match=r"^The picture cannot be read: .*\.$"):
        pipe.embed(b"no picture")
    (tmp_path / "0.png").write_bytes(png(painted(0)))
    (tmp_path / "1.png").write_bytes(b"no picture")
    for images in ([painted(0), b"no picture"], tmp_path, stored({"bytes": png(painted(0))}, {"bytes": b"no"})):
        with pytest.raises(ValueError, match=r"^Picture 1 cannot be read: .*\.$"):
            pipe.embed(images)


# ---- models ----


def test_a_model_in_train_mode_predicts_without_dropout(build_model, processor):
    model = build_model(head_dropout=0.9).train()
    pipe = ArtGraphPipeline(model, processor)
    expected = ArtGraphPipeline(build_model(head_dropout=0.0), processor)(painted(0))
    assert all(pipe(painted(0)) == expected for _ in range(3))
    assert not any(module.training for module in model.modules())


CONVNEXT = ConvNextConfig(hidden_sizes=[8, 16], depths=[1, 1], num_stages=2)


@pytest.mark.parametrize(("backbone", "pooling"), [(ViTConfig(**TINY), "cls"), (CONVNEXT, "pooler")])
def test_a_model_loaded_as_bfloat16(backbone, pooling, build_model, processor, tmp_path):
    full = ArtGraphPipeline(build_model(backbone_config=backbone, pooling=pooling), processor)
    full.save_pretrained(tmp_path)
    pipe = ArtGraphPipeline.from_pretrained(tmp_path, dtype=torch.bfloat16)
    assert pipe.model.heads["artist"].weight.dtype == torch.bfloat16
    pictures = [painted(0), painted(1)]
    answers = pipe(pictures, tasks="artist", batch_size=2)
    for answer, wanted in zip(answers, full(pictures, tasks="artist"), strict=True):
        scores = {entry["label"]: entry["score"] for entry in answer["artist"]}
        assert scores == pytest.approx({entry["label"]: entry["score"] for entry in wanted["artist"]}, abs=0.05)
        assert sum(scores.values()) == pytest.approx(1, abs=1e-6)  # the last step is one of float32
    vectors = pipe.embed(pictures)
    assert vectors.dtype == torch.float32
    assert vectors.norm(dim=1).tolist() == pytest.approx([1, 1], abs=1e-6)


def test_a_model_that_a_pipeline_cannot_serve(model, build_model, processor):
    with pytest.raises(ValueError, match="image_processor"):
        ArtGraphPipeline(model)
    for name in ("error", "file"):
        model = build_model(tasks=[Task(name, MULTI_LABEL, ("a", "b"))])
        with pytest.raises(ValueError, match=f"{name!r}, which is a task of this model"):
            ArtGraphPipeline(model, processor)


# ---- saving and loading ----


def test_a_saved_pipeline_loads_in_each_way(pipe, processor, by_hand, tmp_path):
    pipe.save_pretrained(tmp_path)
    assert AutoImageProcessor.from_pretrained(tmp_path).to_dict() == processor.to_dict()

    expected = by_hand([painted(0)])
    for loaded in (
        ArtGraphPipeline.from_pretrained(tmp_path),
        ArtGraphPipeline.from_pretrained(str(tmp_path), batch_size=2, device="cpu"),
        pipeline("artwork-classification", model=str(tmp_path)),
        pipeline("artwork-classification", model=pipe.model, image_processor=processor),
    ):
        assert type(loaded) is ArtGraphPipeline
        assert loaded.task == "artwork-classification"
        assert_same([loaded(painted(0))], expected)
    assert pipeline("artwork-classification", model=str(tmp_path), top_k=1)(painted(0), tasks="genre") == pipe(
        painted(0), tasks="genre", top_k=1
    )


def test_a_sentence_of_an_answer(known):
    pipe = known(thresholds={"tags": 0.3})
    assert pipe.describe(pipe(painted(0))) == (
        "By an artist whom the model does not name; a portrait; with trees, female portraits and sky."
    )
    assert ArtGraphPipeline.describe(pipe([b""])[0]).startswith("This picture cannot be read: ")
