"""The page: drop a picture, see ranked labels, the sentence, where the model looks, and what is near; and its Space.

Each event computes from the uploaded file anew, so that no user can be shown what belongs to another. Pictures come
from strangers: `read_picture` alone decodes them, and no address is fetched for them. Task names, labels and artworks'
names are whatever a checkpoint or an index holds, so each text is escaped.
"""

from __future__ import annotations

import base64
import io
import json
import os
import re
import shutil
import signal
import sys
import tempfile
import threading
from collections.abc import Mapping, Sequence
from html import escape
from importlib.metadata import requires, version
from pathlib import Path
from typing import Any

import gradio as gr
import yaml
from huggingface_hub import ModelCard
from PIL import Image
from starlette.middleware import Middleware
from starlette.middleware.base import BaseHTTPMiddleware, RequestResponseEndpoint
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response

from ..data.demo import paint_artwork
from ..errors import UserError, as_user_error
from ..model.museum_label import describe, listed
from ..model.pictures import read_picture
from ..model.pipeline_artgraph_vit import ArtGraphPipeline
from ..model.tasks import Task
from .attention import attention_map, overlay
from .search import EmbeddingIndex

MAX_UPLOAD = "20mb"
SHOWN_SIDE = 800  # pixels of the longer side of the heat map
THUMBNAIL = 160  # pixels of the longer side of a near artwork
NEIGHBOURS = 8
KEPT = 3600  # seconds
EXAMPLES = range(100_000, 100_004)  # of the embedded dataset; the demo learns from the first 1,600
POLICY = (
    "default-src 'self' data: blob:; script-src 'self' 'unsafe-inline' 'unsafe-eval'; style-src 'self' 'unsafe-inline'"
)
ADDRESS = re.compile(r"\s*[a-z][a-z0-9+.-]+:", re.IGNORECASE)  # http:, file:, data: and the like
# Of gradio's routes those that fetch an address, or that work on files and that the page has no use for.
CLOSED = re.compile(
    rf"[^=]*/(proxy=|file[=/]+{ADDRESS.pattern}|custom_component|component_server|deep_link|process_recording|vibe-)",
    re.IGNORECASE,
)
MAX_EVENT = 1_000_000  # bytes
TITLE = "What is in a painting?"
NO_EVENT = "This is no event of the page."
NONE = "None is above its threshold."
DROP = "Drop a picture, or choose one of the examples: the labels appear here."
WHERE = (
    "Dark red is what speaks most for the label; where nothing is laid over the picture, nothing does. This is read "
    "from the model's own attentions, weighted by what they do for this label."
)
CSS = """
.sentence {font-size: 1.15rem; line-height: 1.45; margin: 0 0 1rem; overflow-wrap: anywhere;
  border-left: 3px solid var(--color-accent); padding-left: .8rem}
.lists {columns: 2 15rem; column-gap: 1.8rem}
.task {break-inside: avoid; margin-bottom: 1rem}
.task h3 {margin: 0 0 .4rem; font-size: .95rem; font-weight: 600; text-transform: capitalize}
.task h3 small {font-weight: 400; text-transform: none; color: var(--body-text-color); opacity: .72}
.task ol {list-style: none; margin: 0; padding: 0}
.task li {margin: 0 0 .45rem; font-size: .9rem}
.task .line {display: flex; justify-content: space-between; gap: .6rem}
.task .label {overflow-wrap: anywhere; min-width: 0}
.task .score {flex: none; font-variant-numeric: tabular-nums; color: var(--body-text-color); opacity: .72}
.task .bar {height: .35rem; border-radius: .2rem; background: var(--border-color-primary); overflow: hidden}
.task .bar i {display: block; height: 100%; background: var(--color-accent)}
.hint {color: var(--body-text-color); opacity: .72; font-size: .85rem; margin: 0}
#picture img {width: 100%; height: 100%; object-fit: contain}
#heat img {max-height: 30rem; margin: auto}
.nearest {display: grid; grid-template-columns: repeat(auto-fill, minmax(8rem, 1fr)); gap: .8rem}
.nearest figure {margin: 0; min-width: 0}
.nearest img {width: 100%; aspect-ratio: 1; object-fit: contain; border-radius: .3rem;
  background: var(--background-fill-secondary)}
.nearest figcaption {font-size: .8rem; overflow-wrap: anywhere}
"""


def serve(
    pipe: ArtGraphPipeline,
    index: EmbeddingIndex | None = None,
    examples: Sequence[Path] | None = None,
    host: str | None = None,
    port: int | None = None,
) -> None:
    """Serves the page until Ctrl-C.

    Args:
        pipe ([`ArtGraphPipeline`]): its model is set to eager attention.
        index ([`EmbeddingIndex`], *optional*): of the artworks to search.
        examples (`Sequence[Path]`, *optional*): pictures to offer; by default some of the embedded dataset.
        host (`str`, *optional*): the address to bind, by default this machine only, or what the environment variable
            `GRADIO_SERVER_NAME` says, which a Space of the Hub sets.
        port (`int`, *optional*): by default a free one from 7860 on.

    Raises:
        UserError: if the address cannot be bound.
    """
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))  # as Ctrl-C, so that what was uploaded is deleted
    with tempfile.TemporaryDirectory(prefix="artgraph-page-") as folder:
        os.environ["GRADIO_TEMP_DIR"] = folder  # of this page alone, since gradio serves all that lies in it
        page = build_page(pipe, index, paint_examples(Path(folder)) if examples is None else examples)
        with as_user_error(
            f"The page cannot be served at {host or '127.0.0.1'}, port {port}",
            "choose another port, or end what is served there.",
            kinds=(OSError,),
        ):
            launch(page, host, port)
        try:
            print(f"The page is at {page.local_url} until you press Ctrl-C.", flush=True)
            threading.Event().wait()
        finally:
            page.close(verbose=False)


def launch(page: gr.Blocks, host: str | None = None, port: int | None = None) -> None:
    """Starts the server of a page in a thread, with nothing open that the page does not need."""
    page.queue(max_size=64, default_concurrency_limit=2, api_open=False)
    page.launch(
        server_name=host,
        server_port=port,
        share=False,
        max_file_size=MAX_UPLOAD,
        theme=gr.themes.Default(font=("system-ui", "sans-serif"), font_mono=("ui-monospace", "monospace")),
        css=CSS,
        footer_links=[],
        run_history=False,
        enable_monitoring=False,
        ssr_mode=False,
        mcp_server=False,
        quiet=True,
        prevent_thread_lock=True,
        app_kwargs={"middleware": [Middleware(Guard)]},
    )


class Guard(BaseHTTPMiddleware):
    """Closes routes of gradio that the page does not need, refuses events that give an address in the place of an
    uploaded file, which gradio would fetch, and tells the browser to load nothing from elsewhere."""

    async def dispatch(self, request: Request, call_next: RequestResponseEndpoint) -> Response:
        path, refusal = request.scope["path"], None
        if CLOSED.match(path):
            refusal = "This route is closed."
        elif request.method == "POST" and path != "/gradio_api/upload":
            size = int(request.headers.get("content-length", MAX_EVENT + 1))
            refusal = why_refused(await request.body()) if size <= MAX_EVENT else NO_EVENT
        if refusal is not None:
            return PlainTextResponse(refusal, 403)
        response = await call_next(request)
        response.headers["Content-Security-Policy"] = POLICY
        return response


def why_refused(event: bytes) -> str | None:
    """What is wrong with the body of an event, as JSON; None if nothing is."""
    try:
        content = json.loads(event or b"null")
    except (ValueError, RecursionError):
        return NO_EVENT
    return "A picture is uploaded: nothing is fetched from an address." if _has_address(content) else None


def _has_address(content: Any) -> bool:
    if isinstance(content, dict):
        return bool(ADDRESS.match(str(content.get("path")))) or any(map(_has_address, content.values()))
    return isinstance(content, list) and any(map(_has_address, content))


def paint_examples(folder: Path) -> list[Path]:
    """Paints pictures as the embedded dataset has them, none of which the demo was trained on."""
    paths = [folder / f"example-{number}.png" for number in range(1, len(EXAMPLES) + 1)]
    for path, index in zip(paths, EXAMPLES, strict=True):
        paint_artwork(index)[0].save(path)
    return paths


def build_page(
    pipe: ArtGraphPipeline, index: EmbeddingIndex | None = None, examples: Sequence[Path] = ()
) -> gr.Blocks:
    """Lays out the page, of what [`serve`] takes; [`launch`] starts it."""
    pipe.model.set_attn_implementation("eager")  # the faster kinds give no attentions
    tasks = pipe.model.config.tasks
    no_map = ""
    try:
        heat_map(pipe, Image.new("RGB", (64, 64)), tasks[0].name, tasks[0].labels[0])
    except ValueError as error:  # the model gives no attentions, or it is not known where its image processor looks
        no_map = str(error)

    def answer(upload: Any) -> tuple[str, str]:
        image = uploaded_image(upload, picture.GRADIO_CACHE)
        if image is None:
            return hint(DROP), ""
        try:
            answers = answer_html(pipe(image), tasks)
            return answers, nearest_html(index.nearest(pipe.embed(image), NEIGHBOURS)) if index is not None else ""
        except ValueError as error:  # of a picture that cannot be read
            gr.Warning(escape(str(error)))
            return hint(str(error)), ""

    def look(upload: Any, task: str, label: str | None = None) -> tuple[Any, Any, Any]:
        """The part of the page that is shown, the labels to choose from, and the heat map."""
        image = uploaded_image(upload, picture.GRADIO_CACHE)
        try:
            labels = [entry["label"] for entry in pipe(image, tasks=task)[task]] if image else []
        except ValueError:
            image, labels = None, []  # `answer` has said why
        label = label if label in labels else next(iter(labels), None)
        heat = heat_map(pipe, read_picture(image, SHOWN_SIDE), task, label) if image and label is not None else None
        found = gr.Dropdown(choices=labels, value=label, info=None if labels or not image else NONE)
        return gr.Column(visible=image is not None), found, heat

    with gr.Blocks(title=TITLE, analytics_enabled=False, delete_cache=(KEPT // 6, KEPT)) as page:
        names = [task.name for task in tasks]
        spoken = listed([name.replace("_", " ") for name in names])
        what = f"One Vision Transformer looks at a picture once and names its {spoken}."
        gr.HTML(f"<h1>{TITLE}</h1>{hint(what)}")
        with gr.Row():
            with gr.Column(scale=2, min_width=280):
                picture = gr.Image(
                    label="Picture", sources=["upload", "clipboard"], buttons=[], height=320, elem_id="picture"
                )
                if examples:
                    gr.Examples([[str(path)] for path in examples], [picture], label="Examples", elem_id="examples")
            with gr.Column(scale=3, min_width=280):
                answers = gr.HTML(hint(DROP), elem_id="answers")
        with gr.Column(visible=False, elem_id="where") as where, gr.Row():
            with gr.Column(scale=2, min_width=280):
                task = gr.Radio(names, value=names[0], label="Where does the model look?", elem_id="task")
                label = gr.Dropdown([], label="For the label", elem_id="label", filterable=False)
                gr.HTML(hint(WHERE))
            with gr.Column(scale=3, min_width=280):
                heat = gr.Image(
                    label="Where the model looks", interactive=False, buttons=["fullscreen"], elem_id="heat"
                )
        nearest = gr.HTML(elem_id="nearest")
        if no_map:
            gr.HTML(hint(no_map), elem_id="no_map")

        # Without gradio's own preprocessing, which would open the file with any of Pillow's decoders.
        raw: dict[str, Any] = {"preprocess": False, "api_visibility": "private", "concurrency_id": "model"}
        answered = picture.change(answer, [picture], [answers, nearest], **raw)
        if not no_map:
            answered.then(look, [picture, task], [where, label, heat], **raw)
            task.input(look, [picture, task], [where, label, heat], **raw)
            label.input(look, [picture, task, label], [where, label, heat], **raw)
    return page


def uploaded_image(upload: Any, folder: str) -> dict[str, Any] | None:
    """What a visitor has uploaded, as an undecoded `datasets.Image`; anything but a file of the folder is an error.

    gradio has checked it before; this is the second lock.
    """
    if upload is None:
        return None
    path = Path((isinstance(upload, Mapping) and upload.get("path")) or "/").resolve()
    if not path.is_relative_to(Path(folder).resolve()):
        raise gr.Error("This is no file that was uploaded here.")
    return {"path": str(path), "bytes": None}


def heat_map(pipe: ArtGraphPipeline, picture: Image.Image, task: str, label: str) -> Image.Image:
    """Where the model looks for a label, laid over the picture; raises as [`attention_map`] does."""
    model: Any = pipe.model
    pixel_values = pipe.preprocess(picture)["pixel_values"].to(model.device, model.backbone.dtype)  # (1, 3, H, W)
    heat = attention_map(model, pixel_values, task, label)  # (h, w)
    scale = SHOWN_SIDE / max(picture.size)
    shown = picture.resize([max(1, round(side * scale)) for side in picture.size], Image.Resampling.BICUBIC)
    return overlay(shown, heat, pipe.image_processor)


# ---- HTML ----


def hint(text: str) -> str:
    return f'<p class="hint">{escape(text)}</p>'


def answer_html(answer: Mapping[str, Sequence[Mapping[str, Any]]], tasks: Sequence[Task]) -> str:
    """The sentence of an answer, as [`ArtGraphPipeline`] returns it for one picture, and a ranked list a task."""
    lists = ""
    for task in tasks:
        kind = "any of them" if task.is_multi_label else "one of them"
        entries = "".join(map(_entry_html, answer[task.name]))
        body = f"<ol>{entries}</ol>" if entries else hint(NONE)
        name = escape(task.name.replace("_", " "))
        lists += f'<section class="task"><h3>{name} <small>{kind}</small></h3>{body}</section>'
    return f'<p class="sentence">{escape(describe(answer))}</p><div class="lists">{lists}</div>'


def _entry_html(entry: Mapping[str, Any]) -> str:
    percent = 100 * entry["score"]
    score = "&lt; 1 %" if percent < 0.5 else f"{percent:.0f} %"
    return (
        f'<li><div class="line"><span class="label">{escape(entry["label"])}</span>'
        f'<span class="score">{score}</span></div>'
        f'<div class="bar"><i style="width: {percent:.1f}%"></i></div>'
        f"{hint(entry['means']) if entry.get('means') else ''}</li>"
    )


def nearest_html(artworks: Sequence[Mapping[str, Any]]) -> str:
    """The nearest artworks, as [`EmbeddingIndex.nearest`] returns them, with their pictures."""
    figures = ""
    for artwork in artworks:
        picture = artwork["thumbnail"]
        picture.thumbnail((THUMBNAIL, THUMBNAIL))
        file = io.BytesIO()
        picture.save(file, "JPEG", quality=85)
        figures += (
            f'<figure><img alt="" src="data:image/jpeg;base64,{base64.b64encode(file.getvalue()).decode()}">'
            f"<figcaption>{escape(str(artwork['name']))}<br>similarity {artwork['score']:.2f}</figcaption></figure>"
        )
    return f'<h3>The nearest artworks</h3><div class="nearest">{figures}</div>'


# ---- a Space of the Hub ----

APP = '''"""The page of a model of artworks: artist, style, genre, tags and media."""

from pathlib import Path

from artgraph_vit import ArtGraphPipeline
from artgraph_vit.serving.page import serve

HERE = Path(__file__).resolve().parent

if __name__ == "__main__":
    serve(ArtGraphPipeline.from_pretrained({model}), examples=sorted((HERE / "examples").iterdir()))
'''


def write_space(model: str, out: Path) -> None:
    """Writes a folder that is a Space of the Hub: app.py, README.md with its settings, requirements.txt, this package
    and example pictures.

    Args:
        model (`str`): a Hub id, or a folder, whose weights are copied in.
        out (`Path`): the folder to write, which must not hold anything yet.

    Raises:
        UserError: if it does, or there is no such model.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"{out} holds something already: choose another folder.")
    folder = Path(model)
    name, where = repr(model), f"[{model}](https://huggingface.co/{model})"
    settings: dict[str, Any] = {
        "title": TITLE,
        "emoji": "\N{ARTIST PALETTE}",
        "sdk": "gradio",
        "sdk_version": version("gradio"),
        "python_version": "3.11",  # the least that the package runs on
        "app_file": "app.py",
    }
    if folder.is_dir():
        name, where = 'HERE / "model"', "in the folder `model`"
        needed = ("config.json", "preprocessor_config.json", "model*.safetensors")
        for pattern in needed:
            if not any(folder.glob(pattern)):
                raise UserError(f"{folder} holds no model: it lacks {pattern}.")
        (out / "model").mkdir(parents=True)
        for pattern in (*needed, "model*.json", "README.md", "LICENSE"):
            for path in folder.glob(pattern):
                shutil.copy2(path, out / "model")
        card = ModelCard.load(folder / "README.md").data.to_dict() if (folder / "README.md").is_file() else {}
        settings |= {key: card[key] for key in ("license", "license_name", "license_link") if card.get(key)}
    else:
        if not re.fullmatch(r"[\w.-]+/[\w.-]+", model):
            raise UserError(f"{model!r} is neither a folder nor called user/name, as a repository on the Hub is.")
        settings["models"] = [model]
    (out / "examples").mkdir(parents=True)
    paint_examples(out / "examples")
    (out / "app.py").write_text(APP.format(model=name), encoding="utf-8")
    front = yaml.safe_dump(settings, sort_keys=False, allow_unicode=True)
    text = f"Shows what a model of artworks, {where}, sees in a picture, and where it looks."
    (out / "README.md").write_text(f"---\n{front}---\n\n{text}\n", encoding="utf-8")
    needs = [*(line for line in requires("artgraph_vit") or () if ";" not in line), f"gradio=={version('gradio')}"]
    (out / "requirements.txt").write_text("\n".join(needs) + "\n", encoding="utf-8")
    # A Space installs its requirements before it has the other files, so the package lies beside the page.
    package = Path(__file__).parents[1]
    shutil.copytree(package, out / package.name, ignore=shutil.ignore_patterns("__pycache__", "*.pyc"))
