"""The page: what a visitor sees, in a real headless browser; what hostile names may not do, and what stays shut."""

import io
import json
import os
import re
import shutil
import socket
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import gradio as gr
import httpx
import pytest
import torch
from PIL import Image
from transformers import SwinConfig, ViTConfig, ViTImageProcessor

from artgraph_vit import ArtGraphPipeline, ArtGraphViTConfig, ArtGraphViTForImageClassification, Task, describe
from artgraph_vit.data.demo import paint_artwork
from artgraph_vit.errors import UserError
from artgraph_vit.model.tasks import MULTI_LABEL, SINGLE_LABEL
from artgraph_vit.serving.page import build_page, launch, paint_examples, uploaded_image, why_refused
from tests.conftest import TINY

from .conftest import ROOT, run_script

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
FLAGS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
)
TRAP = "<img src=x onerror=window.hacked=1>"
LABELS = {
    "artist": (TRAP, "<script>window.hacked=2</script>", "${window.hacked=3}", "other"),
    "style": ("{{#each value}}{{this}}{{/each}}", "`+(window.hacked=4)+`", "cubism"),
    "genre": ("</li></ol><iframe srcdoc='<script>parent.hacked=5</script>'></iframe>", "portrait"),
    "tags": ("<svg onload=window.hacked=6>", "Tree", "boat"),
    "media": ("oil", '" onmouseover="window.hacked=7'),
}


class Index:
    def nearest(self, vector, k):
        assert abs(float(vector.norm()) - 1) < 1e-5
        picture = Image.new("RGB", (300, 200), "red")
        found = ((TRAP, 0.97), ("a print", 0.5))
        return [{"name": name, "score": score, "thumbnail": picture} for name, score in found][:k]


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    torch.manual_seed(3)
    several = ("tags", "media")
    tasks = [
        Task(name, MULTI_LABEL if name in several else SINGLE_LABEL, labels, "other" if name == "artist" else "keep")
        for name, labels in LABELS.items()
    ]
    config = ArtGraphViTConfig(
        backbone_config=ViTConfig(**{**TINY, "image_size": 32}),
        tasks=tasks,
        thresholds={"tags": 0.01, "media": 0.9999},
    )
    model = ArtGraphViTForImageClassification(config)
    with torch.no_grad():
        for head in model.heads.values():
            head.weight.normal_()
    model.save_pretrained(folder)
    ViTImageProcessor(size={"height": 32, "width": 32}).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def pipe(model) -> ArtGraphPipeline:
    return ArtGraphPipeline.from_pretrained(model)


@pytest.fixture(scope="module")
def address(pipe, tmp_path_factory):
    """Of a page that is served by this process."""
    folder = tmp_path_factory.mktemp("uploads")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GRADIO_TEMP_DIR", str(folder))
        page = build_page(pipe, Index(), paint_examples(folder))
        launch(page)
        yield page.local_url.rstrip("/")
        page.close(verbose=False)


def picture_file(folder: Path, index: int = 0, name: str = "painting.png") -> Path:
    paint_artwork(index)[0].save(folder / name)
    return folder / name


# ---- what a visitor sees ----

in_a_browser = pytest.mark.skipif(BROWSER is None, reason="needs a browser: apt-get install chromium")


@pytest.fixture(scope="module")
def browser():
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=BROWSER, args=list(FLAGS))
        yield browser
        browser.close()


@pytest.fixture
def visit(browser, address):
    """`visit(width, height)`: a new visitor's page; what it asks of other machines is refused and is an error."""
    contexts, strayed, failures = [], [], []

    def route(request):
        if request.request.url.startswith((f"{address}/", "data:", "blob:")):
            request.continue_()
        else:
            strayed.append(request.request.url)
            request.abort()

    def open_page(width: int = 1200, height: int = 900):
        context = browser.new_context(viewport={"width": width, "height": height})
        contexts.append(context)
        context.route("**/*", route)
        page = context.new_page()
        page.set_default_timeout(15_000)
        page.on("pageerror", lambda error: failures.append(str(error)))
        page.goto(address)
        page.wait_for_selector("#picture input[type=file]", state="attached")
        return page

    yield open_page
    hacked = [page.evaluate("window.hacked") for context in contexts for page in context.pages]
    for context in contexts:
        context.close()
    assert not strayed
    assert not failures
    assert hacked == [None] * len(hacked)


def upload(page, *files) -> None:
    page.set_input_files("#picture input[type=file]", *files)


def clear(page) -> None:
    page.click("[aria-label='Clear'], [aria-label='Remove Image']")
    page.wait_for_selector("#answers .task", state="detached")


def heat(page) -> bytes:
    """The bytes of the heat map, once it is drawn, which a browser leaves for when it is in sight."""
    page.locator("#heat img").scroll_into_view_if_needed()
    page.wait_for_function("document.querySelector('#heat img')?.naturalWidth > 0")
    page.wait_for_function("!document.querySelector('#heat .generating, #heat .wrap.default:not(.hide)')")
    return httpx.get(page.get_attribute("#heat img", "src")).content


def shown(page) -> dict[str, list[str]]:
    """The labels of each list on the page."""
    return {
        section.query_selector("h3").inner_text().split("\n")[0].lower().split(" ")[0]: [
            label.inner_text() for label in section.query_selector_all(".label")
        ]
        for section in page.query_selector_all("#answers .task")
    }


def expected(pipe, picture: Path) -> dict[str, list[str]]:
    return {task: [entry["label"] for entry in entries] for task, entries in pipe(str(picture)).items()}


@pytest.mark.slow
@in_a_browser
def test_a_picture_gives_five_lists_and_the_sentence_and_all_labels_are_text(visit, pipe, tmp_path):
    picture = picture_file(tmp_path, name="<img src=x onerror=window.hacked=8>'\"&.png")
    page = visit()
    upload(page, picture)
    page.wait_for_selector("#answers .task")
    assert shown(page) == expected(pipe, picture)
    assert page.inner_text("#answers .sentence") == " ".join(describe(pipe(str(picture))).split())
    assert page.locator("#answers section").count() == 5
    for bar, score in zip(
        page.query_selector_all("#answers .bar i"),
        [entry["score"] for entries in pipe(str(picture)).values() for entry in entries],
        strict=True,
    ):
        box, whole = bar.bounding_box(), bar.evaluate("i => i.parentElement.clientWidth")
        assert box["width"] == pytest.approx(whole * score, abs=1)
    assert "another artist than the 3 that are named" in page.inner_text("#answers")
    assert "None is above its threshold." in page.inner_text("#answers")
    assert page.locator("#answers img, #answers script, #answers iframe, #answers svg").count() == 0
    heat(page)
    page.click("#label input")
    assert page.locator("#label [role=option]").count() == 4
    assert TRAP in page.inner_text("#label")


@pytest.mark.slow
@in_a_browser
def test_the_map_changes_with_the_task_and_the_label(visit, tmp_path):
    page = visit()
    upload(page, picture_file(tmp_path))
    maps = [heat(page)]
    best = page.input_value("#label input")

    def changed(act) -> bytes:
        before = page.get_attribute("#heat img", "src")
        act()
        page.wait_for_function("old => document.querySelector('#heat img')?.src != old", arg=before)
        return heat(page)

    def choose(label: str):
        page.click("#label input")
        page.click(f'#label [role=option][aria-label="{label}"]')

    maps.append(changed(lambda: page.click("#task label:has-text('tags')")))
    assert page.input_value("#label input") in LABELS["tags"]
    other = next(label for label in ("Tree", "boat") if label != page.input_value("#label input"))
    maps.append(changed(lambda: choose(other)))
    assert len(set(maps)) == 3
    assert changed(lambda: page.click("#task label:has-text('artist')")) == maps[0]
    assert page.input_value("#label input") == best
    page.click("#task label:has-text('media')")  # of which none is above its threshold
    page.wait_for_selector("#heat img", state="detached")
    assert "None is above its threshold." in page.inner_text("#label")


@pytest.mark.slow
@in_a_browser
def test_bad_files_give_a_message_and_the_page_goes_on(visit, pipe, tmp_path):
    page = visit()
    upload(page, picture_file(tmp_path))
    page.wait_for_selector("#answers .task")
    page.wait_for_selector("#heat img")  # its map is there, and cannot come after what follows
    (tmp_path / "bad.png").write_bytes(b"\x89PNG\r\n\x1a\n<script>window.hacked=9</script>" * 9)
    clear(page)
    assert "Drop a picture" in page.inner_text("#answers")
    upload(page, tmp_path / "bad.png")
    page.wait_for_selector(".toast-wrap :text('cannot be read')")
    page.wait_for_selector("#answers :text('cannot be read')")  # which comes after the toast
    assert page.inner_text("#answers").startswith("The picture cannot be read: ")
    assert str(tmp_path) not in page.content()
    page.wait_for_selector("#where", state="hidden")
    clear(page)
    large = tmp_path / "<img src=x onerror=window.hacked=10>.png"
    large.write_bytes(bytes(21 * 2**20))
    upload(page, large)
    page.wait_for_selector(":text('exceed the maximum allowed size of 20.0 Mb')")
    page = visit()
    good = picture_file(tmp_path, 5)
    upload(page, good)
    page.wait_for_selector("#answers .task")
    assert shown(page) == expected(pipe, good)


@pytest.mark.slow
@in_a_browser
def test_two_visitors_at_once_get_their_own(visit, pipe, tmp_path):
    pictures = [picture_file(tmp_path, index, f"{index}.png") for index in (1, 2)]
    scores = [[f"{100 * entry['score']:.1f}%" for entry in pipe(str(picture))["artist"]] for picture in pictures]
    assert scores[0] != scores[1]
    pages = [visit(), visit()]
    for page, picture in zip(pages, pictures, strict=True):
        upload(page, picture)
    for page, own in zip(pages, scores, strict=True):
        page.wait_for_selector("#answers .task")
        bars = page.locator("#answers .task").first.locator(".bar i")
        assert [bar.get_attribute("style").removeprefix("width: ").rstrip(";") for bar in bars.all()] == own
    assert heat(pages[0]) != heat(pages[1])


@pytest.mark.slow
@in_a_browser
def test_examples_and_nearest_artworks_on_a_phone(visit):
    page = visit(390, 844)
    examples = page.locator("#examples img")
    assert examples.count() == 4
    examples.first.click()
    page.wait_for_selector("#nearest figure")
    assert page.locator("#answers .task").count() == 5
    figures = page.locator("#nearest figure").all_inner_texts()
    assert figures == [f"{TRAP}\nsimilarity 0.97", "a print\nsimilarity 0.50"]
    assert page.evaluate("document.querySelector('#nearest img').naturalWidth") == 160
    assert page.locator("#nearest img").count() == 2
    heat(page)
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    picture, answers, where = (page.locator(name).bounding_box() for name in ("#picture", "#answers", "#heat"))
    assert picture["y"] + picture["height"] <= answers["y"]
    assert answers["y"] + answers["height"] <= where["y"]
    assert min(box["width"] for box in (picture, answers, where)) > 300


def test_a_model_without_a_map_says_so_in_its_place():
    swin = SwinConfig(image_size=32, patch_size=4, embed_dim=8, depths=[1, 1], num_heads=[1, 2], window_size=4)
    config = ArtGraphViTConfig(backbone_config=swin, tasks=[Task("genre", SINGLE_LABEL, ("a", "b"))], pooling="mean")
    image_processor = ViTImageProcessor(size={"height": 32, "width": 32})
    page = build_page(ArtGraphPipeline(ArtGraphViTForImageClassification(config), image_processor))
    texts = [block.value for block in page.blocks.values() if getattr(block, "elem_id", None) == "no_map"]
    assert len(texts) == 1
    assert "gives no attentions between all its patches" in texts[0]
    assert [function.api_name for function in page.fns.values()] == ["answer"]


# ---- what stays shut ----


def test_only_files_of_the_folder_are_opened_and_an_address_never(tmp_path):
    """The second lock, by itself."""
    folder = tmp_path / "uploads"
    folder.mkdir()
    (folder / "link.png").symlink_to("/etc/passwd")
    inside = str(folder / "a" / "b.png")
    assert uploaded_image({"path": inside}, str(folder)) == {"path": inside, "bytes": None}
    assert uploaded_image(None, str(folder)) is None
    for path in (None, "", "/etc/passwd", f"{folder}/../x.png", f"{folder}/link.png", f"{folder}2/a.png"):
        with pytest.raises(gr.Error):
            uploaded_image({"path": path}, str(folder))
    for given in ("http://127.0.0.1/a.png", [], 7, {}, {"url": inside}, {"path": "http://127.0.0.1/a.png"}):
        with pytest.raises(gr.Error):
            uploaded_image(given, str(folder))


@pytest.mark.parametrize(
    "path", ["http://a.org/b.png", " HTTPS://a.org", "file:///etc/passwd", "data:image/png;base64,bm8="]
)
def test_an_event_that_gives_an_address_for_a_file_is_refused(path):
    for data in ([{"path": path}], [None, "artist", {"value": [{"a": {"path": path, "url": None}}]}]):
        assert "nothing is fetched" in why_refused(json.dumps({"data": data}).encode())
    assert why_refused(json.dumps({"data": [{"path": "/tmp/a.png", "url": path}, path]}).encode()) is None
    assert why_refused(b"") is None
    assert why_refused(b"path=http://a.org") == "This is no event of the page."
    assert why_refused(b"[" * 100_000) == "This is no event of the page."


@pytest.fixture(scope="module")
def client(address):
    with httpx.Client(base_url=address, timeout=20) as client:
        yield client


@pytest.fixture(scope="module")
def uploaded(client) -> str:
    file = io.BytesIO()
    paint_artwork(0)[0].save(file, "PNG")
    return client.post("/gradio_api/upload", files={"files": ("a.png", file.getvalue())}).json()[0]


def send(client: httpx.Client, upload: object, function: str = "answer", others: tuple = ("artist", "other")) -> dict:
    """Calls an event of the page as its JavaScript does."""
    events = {event["api_name"]: event for event in client.get("/config").json()["dependencies"]}
    data = [upload, *others][: len(events[function]["inputs"])]
    session = os.urandom(6).hex()
    body = {"data": data, "fn_index": events[function]["id"], "session_hash": session}
    answer = client.post("/gradio_api/queue/join", json=body)
    if answer.status_code == 403:
        return {"success": False, "output": {"error": answer.text}}
    answer.raise_for_status()
    with client.stream("GET", f"/gradio_api/queue/data?session_hash={session}") as stream:
        for line in stream.iter_lines():
            if "process_completed" in line:
                return json.loads(line.removeprefix("data: "))
    raise AssertionError("no answer")


def file_data(path: str, **more: object) -> dict:
    return {"path": path, "meta": {"_type": "gradio.FileData"}, **more}


@pytest.mark.parametrize("function", ["answer", "look", "look_2"])
def test_only_uploaded_files_are_read(client, uploaded, model, function):
    assert send(client, file_data(uploaded), function)["success"]
    up = "/.." * 12
    painting = picture_file(model)  # what could be read if its path were taken
    for given in (
        *(file_data("/etc/passwd"), {"path": "/etc/passwd"}, "/etc/passwd", file_data(str(model / "config.json"))),
        *(file_data(str(painting)), {"path": str(painting)}, file_data(f"{uploaded}{up}{painting}")),
        *({"path": f"{uploaded}{up}{painting}"}, file_data("Makefile"), file_data("file:///etc/passwd")),
        *({"url": "file:///etc/passwd"}, [], 7, {}),
        file_data(str(painting), url=f"/gradio_api/file={painting}", orig_name="a.svg"),
    ):
        answer = send(client, given, function)
        assert not answer["success"], given
        assert "root:" not in json.dumps(answer)


def test_no_address_is_fetched(client, uploaded):
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        listener.settimeout(0.2)
        url = f"http://127.0.0.1:{listener.getsockname()[1]}/a.png"
        there = file_data(url)
        for given in (there, file_data(url, url=url), file_data(url, is_stream=True), {"path": url}, {"url": url}):
            assert not send(client, given)["success"], given
        # In the place of a task or a label too.
        assert not send(client, file_data(uploaded), "look_2", (there, "other"))["success"]
        assert not send(client, file_data(uploaded), "look_2", ("artist", there))["success"]
        for route in ("run/answer", "run/upload", "api/answer", "call/answer", "call/v2/answer", "upload/"):
            body = {"data": [there], "fn_index": 0, "session_hash": "a"}
            assert client.post(f"/gradio_api/{route}", json=body).status_code == 403
        assert client.post("/gradio_api/upload", json=body).status_code >= 400
        assert client.post("/gradio_api/run/answer", content=b" " * 1_000_001).status_code == 403
        assert client.post("/gradio_api/run/answer", content=iter([b"null"])).status_code == 403  # of unknown size
        assert "nothing is fetched" in send(client, file_data("https://example.com/a.png"))["output"]["error"]
        assert send(client, file_data(uploaded, url=url))["success"]
        for route in (f"file={url}", f"file/{url}", f"proxy={url}", f"file=%20{url}"):
            assert client.get(f"/gradio_api/{route}").status_code in (403, 404)
        with pytest.raises(TimeoutError):
            listener.accept()


def test_the_page_does_not_decode_what_gradio_would(client, uploaded):
    """An address of the kind data: would be decoded by gradio with all of Pillow, the file by `read_picture`."""
    answer = send(client, file_data(uploaded, url="data:image/png;base64,bm8gcGljdHVyZQ=="))
    assert "sentence" in answer["output"]["data"][0]
    postscript = io.BytesIO()
    Image.new("RGB", (8, 8)).save(postscript, "EPS")
    path = client.post("/gradio_api/upload", files={"files": ("a.png", postscript.getvalue())}).json()[0]
    assert "not a picture in one of the formats" in send(client, file_data(path))["output"]["data"][0]


def test_routes_read_no_file(client, uploaded, model):
    up = "..%2f" * 12
    folder = Path(uploaded).parent
    paths = [str(model / "config.json"), "/etc/passwd", "Makefile", f"{Path(uploaded).parents[2]}/etc/passwd"]
    paths += [f"{uploaded}/../../../../etc/passwd", f"{folder}/%2e%2e/%2e%2e/%2e%2e/etc/passwd"]
    kinds = ("/file=", "/gradio_api/file=", "/gradio_api/file/", "/gradio_api/file=file://", "/gradio_api/stream/")
    for route in (
        *(f"{kind}{path}" for kind in kinds for path in paths),
        *(f"/static/{up}etc/passwd", f"/assets/{up}etc/passwd", f"/svelte/{up}etc/passwd"),
        *(f"/static/{model}/config.json", f"/gradio_api/custom_component/x/client/component/{up}etc/passwd"),
        *("/gradio_api/deep_link?session_hash=a", "/monitoring", "/gradio_api/runs", "/docs"),
    ):
        answer = client.get(route)
        assert answer.status_code in (403, 404, 405, 422), route
        assert "root:" not in answer.text
    assert client.get(f"/gradio_api/file={uploaded}").status_code == 200
    assert "default-src 'self'" in client.get("/").headers["content-security-policy"]


def test_uploads_are_limited_and_stay_in_their_folder(client, uploaded):
    large = client.post("/gradio_api/upload", files={"files": ("a.png", bytes(20 * 2**20 + 1))})
    assert large.status_code == 413
    path = client.post("/gradio_api/upload", files={"files": ("../../../evil.png", b"x")}).json()[0]
    assert Path(path).parents[1] == Path(uploaded).parents[1]
    assert Path(path).name == "evil.png"


# ---- the script and the Space ----


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def start(command: list, cwd: Path, **environment: str) -> tuple[subprocess.Popen, str]:
    """Starts a page; returns its process and its address."""
    process = subprocess.Popen(
        [sys.executable, *map(str, command)],
        cwd=cwd,
        env={**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", **environment},
        stdout=subprocess.PIPE,
        stderr=(cwd / "stderr.txt").open("w"),
        text=True,
    )
    line = process.stdout.readline()
    found = re.search(r"http://127\.0\.0\.1:\d+", line)
    assert found, line + (cwd / "stderr.txt").read_text()[-3000:]
    return process, found[0]


@pytest.fixture
def run(monkeypatch, tmp_path):
    """`run(script, *arguments)`: what a script does, in this process and in a folder of its own."""

    def run(script: str, *arguments: object) -> None:
        (tmp_path / "elsewhere").mkdir(exist_ok=True)
        monkeypatch.chdir(tmp_path / "elsewhere")
        monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path))  # the page sets it, and it is set back after the test
        run_script(script, *arguments)

    return run


def test_the_script_says_what_is_missing(run, model):
    with pytest.raises(UserError, match=r"There is no model in runs/demo: run make demo first, or give a model\.$"):
        run("app.py")
    with pytest.raises(UserError, match="There is no folder '/nosuch/model'"):
        run("app.py", "/nosuch/model")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(UserError, match=r"cannot be served at 127\.0\.0\.1, port \d+ .*choose another port"):
            run("app.py", model, "--port", taken.getsockname()[1])


def test_a_space_of_a_model_in_a_folder_holds_all_it_needs(run, model, tmp_path):
    space = tmp_path / "space"
    (model / "README.md").write_text("---\nlicense: cc-by-4.0\n---\n")
    run("space.py", model, space)
    settings = (space / "README.md").read_text().split("---")[1]
    for line in ("sdk: gradio", f"sdk_version: {version('gradio')}", "app_file: app.py", "license: cc-by-4.0"):
        assert line in settings
    assert "models:" not in settings
    needs = (space / "requirements.txt").read_text().split()
    names = {re.split("[<>=]", need)[0] for need in needs}
    assert names >= {"torch", "transformers", "gradio", "Pillow", "matplotlib"}
    assert not any("/" in need or "pytest" in need for need in needs)
    assert len(list((space / "examples").iterdir())) == 4
    assert {path.name for path in (space / "model").iterdir()} >= {"model.safetensors", "config.json"}
    for path in space.rglob("*.py"):
        assert str(ROOT) not in path.read_text(encoding="utf-8")


@pytest.mark.slow
def test_a_space_runs_from_its_own_files_and_deletes_what_was_uploaded(run, model, tmp_path):
    space = tmp_path / "space"
    run("space.py", model, space)
    # Says which copy of the package it runs, then is the app.
    (space / "whose.py").write_text(
        "import sys, artgraph_vit\nprint(artgraph_vit.__file__, file=sys.stderr)\n"
        "import runpy; runpy.run_path('app.py', run_name='__main__')\n"
    )
    (tmp_path / "temporary").mkdir()
    environment = {"GRADIO_SERVER_PORT": str(free_port()), "PYTHONPATH": "", "TMPDIR": str(tmp_path / "temporary")}
    process, address = start(["whose.py"], space, **environment)
    listening = Path("/proc/net/tcp")
    if listening.is_file():  # to this machine alone
        port = int(environment["GRADIO_SERVER_PORT"])
        lines = [line.split()[1] for line in listening.read_text().splitlines() if f":{port:04X} 00000000:" in line]
        assert lines == [f"0100007F:{port:04X}"]
    with httpx.Client(base_url=address, timeout=20) as client:
        file = (space / "examples" / "example-1.png").read_bytes()
        path = client.post("/gradio_api/upload", files={"files": ("a.png", file)}).json()[0]
        assert "sentence" in send(client, file_data(path))["output"]["data"][0]
        assert client.get(f"/gradio_api/file={space / 'model' / 'config.json'}").status_code == 403
    assert list((tmp_path / "temporary").rglob("a.png"))
    process.terminate()  # as a Space is ended, and a service
    process.communicate(timeout=30)
    assert not list((tmp_path / "temporary").rglob("a.png"))
    assert str(space / "artgraph_vit" / "__init__.py") in (space / "stderr.txt").read_text()


def test_a_space_of_a_model_on_the_hub_names_it(run, tmp_path):
    run("space.py", "ada/artgraph-vit", tmp_path / "space")
    assert "from_pretrained('ada/artgraph-vit')" in (tmp_path / "space" / "app.py").read_text()
    settings = (tmp_path / "space" / "README.md").read_text()
    assert "models:\n- ada/artgraph-vit\n" in settings
    assert "license" not in settings
    assert not (tmp_path / "space" / "model").exists()
    assert "trust_remote_code" not in (tmp_path / "space" / "app.py").read_text()
    for asked, out, message in (
        ("ada/artgraph-vit", "space", "holds something already"),
        ("ada", "other", "neither a folder nor called user/name"),
        ("/nosuch/model", "other", "neither a folder nor called user/name"),
        (tmp_path, "other", "holds no model: it lacks config.json"),
    ):
        with pytest.raises(UserError, match=message):
            run("space.py", asked, tmp_path / out)
    assert not (tmp_path / "other").exists()
