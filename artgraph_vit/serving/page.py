"""The page: drop a picture, see ranked labels with bars, the sentence, where the model looks, and what is near.

Each event computes from the uploaded file anew, so that no user can be shown what belongs to another. Pictures come
from strangers: they are decoded by `read_picture` alone, no address is fetched for them, the browser is told to load
nothing from elsewhere, and what was uploaded is deleted after an hour.
"""

from __future__ import annotations

import os
import re
import signal
import sys
import tempfile
import threading
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any, Protocol

import gradio as gr
from PIL import Image
from starlette.datastructures import MutableHeaders
from starlette.middleware import Middleware
from starlette.responses import PlainTextResponse
from torch import Tensor

from ..errors import UserError
from ..model.pictures import BadPictureError, read_picture
from ..model.pipeline_artgraph_vit import ArtGraphPipeline
from .attention import attention_map, overlay
from .html import CSS, NONE, TITLE, answer_html, heading, hint, nearest_html

MAX_UPLOAD = "20mb"
SHOWN_SIDE = 800  # pixels of the longer side of the heat map, at most
NEIGHBOURS = 8
AT_ONCE = 2  # pictures in work; others wait in the queue
MOST_WAITING = 64
KEPT = 3600  # seconds
EXAMPLES = 4
FIRST_EXAMPLE = 100_000  # of the embedded dataset; the demo learns from the first 1,600
FONTS = ("system-ui", "sans-serif")  # of the visitor's own machine
POLICY = (
    "default-src 'self' data: blob:; script-src 'self' 'unsafe-inline' 'unsafe-eval'; style-src 'self' 'unsafe-inline'"
)
ADDRESS = re.compile(r"\s*[a-z][a-z0-9+.-]+:", re.IGNORECASE)  # http:, file:, data: and the like
# Of gradio's routes those that fetch an address, or that work on files and that the page has no use for.
CLOSED = re.compile(
    rf"[^=]*/(proxy=|file[=/]+{ADDRESS.pattern}|custom_component|component_server|deep_link|process_recording|vibe-)",
    re.IGNORECASE,
)
DROP = "Drop a picture, or choose one of the examples: the labels appear here."
WHERE = (
    "Dark red is what speaks most for the label; where nothing is laid over the picture, nothing does. This is read "
    "from the model's own attentions, weighted by what they do for this label."
)


class Index(Protocol):
    """What the page asks of an index of artworks: see [`EmbeddingIndex`]."""

    def nearest(self, vector: Tensor, k: int) -> Sequence[Mapping[str, Any]]: ...


def serve(
    pipe: ArtGraphPipeline,
    index: Index | None = None,
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
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))  # as Ctrl-C, so that what was uploaded is deleted
    with tempfile.TemporaryDirectory(prefix="artgraph-page-") as folder:
        os.environ["GRADIO_TEMP_DIR"] = folder  # of this page alone, since gradio serves all that lies in it
        page = build_page(pipe, index, paint_examples(Path(folder)) if examples is None else examples)
        try:
            launch(page, host, port)
        except OSError as error:
            raise UserError(
                f"The page cannot be served at {host or '127.0.0.1'}, port {port}: choose another port, or end what "
                "is served there."
            ) from error
        try:
            print(f"The page is at {page.local_url} until you press Ctrl-C.", flush=True)
            threading.Event().wait()
        finally:
            page.close(verbose=False)


def launch(page: gr.Blocks, host: str | None = None, port: int | None = None) -> None:
    """Starts the server of a page in a thread, with nothing open that the page does not need."""
    page.queue(max_size=MOST_WAITING, default_concurrency_limit=AT_ONCE, api_open=False)
    page.launch(
        server_name=host,
        server_port=port,
        share=False,
        max_file_size=MAX_UPLOAD,
        theme=gr.themes.Default(font=FONTS, font_mono=("ui-monospace", "monospace")),
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


class Guard:
    """Closes routes of gradio that the page does not need, and tells the browser to load nothing from elsewhere.

    Args:
        app: the ASGI application behind it.
    """

    def __init__(self, app: Any):
        self.app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "http" and CLOSED.match(scope["path"]):
            await PlainTextResponse("This route is closed.", 403)(scope, receive, send)
            return

        async def send_with_policy(message: Any) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message)["Content-Security-Policy"] = POLICY
            await send(message)

        await self.app(scope, receive, send_with_policy)


def paint_examples(folder: Path) -> list[Path]:
    """Paints pictures as the embedded dataset has them, none of which the demo was trained on."""
    from ..data.demo import paint_artwork  # here, since `datasets` comes with it

    paths = []
    for number in range(EXAMPLES):
        path = folder / f"example-{number + 1}.png"
        paint_artwork(FIRST_EXAMPLE + number)[0].save(path)
        paths.append(path)
    return paths


def build_page(pipe: ArtGraphPipeline, index: Index | None = None, examples: Sequence[Path] = ()) -> gr.Blocks:
    """Lays out the page; [`launch`] starts it.

    Args:
        pipe, index, examples: as of [`serve`].
    """
    pipe.model.set_attn_implementation("eager")  # the faster kinds give no attentions
    tasks = [task.name for task in pipe.model.config.tasks]
    no_map = _why_no_map(pipe)

    def answer(upload: Any) -> tuple[str, str]:
        path = _uploaded_file(upload, picture)
        if path is None:
            return hint(DROP), ""
        try:
            answers = answer_html(pipe(path), pipe.model.config.tasks)
            return answers, nearest_html(index.nearest(pipe.embed(path), NEIGHBOURS)) if index is not None else ""
        except ValueError as error:  # of a picture that cannot be read
            gr.Warning(escape(str(error)))
            return hint(str(error)), ""

    def look(upload: Any, task: str, label: str | None = None) -> tuple[Any, Any, Any]:
        """The part of the page that is shown, the labels to choose from, and the heat map."""
        path = _uploaded_file(upload, picture)
        try:
            labels = [entry["label"] for entry in pipe(path, tasks=task)[task]] if path else []
            label = label if label in labels else next(iter(labels), None)
            heat = None if label is None else heat_map(pipe, path or "", task, label)
        except ValueError:
            return gr.Column(visible=False), gr.Dropdown(choices=[], value=None), None  # `answer` has said why
        found = gr.Dropdown(choices=labels, value=label, info=None if labels or not path else NONE)
        return gr.Column(visible=path is not None), found, heat

    def look_again(upload: Any, task: str, label: str) -> Any:
        path = _uploaded_file(upload, picture)
        try:
            return heat_map(pipe, path, task, label) if path and label else None
        except ValueError as error:
            gr.Warning(escape(str(error)))
            return None

    with gr.Blocks(title=TITLE, analytics_enabled=False, delete_cache=(KEPT // 6, KEPT)) as page:
        gr.HTML(heading(pipe.model.config.tasks))
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
                task = gr.Radio(tasks, value=tasks[0], label="Where does the model look?", elem_id="task")
                label = gr.Dropdown([], label="For the label", elem_id="label", filterable=False)
                gr.HTML(hint(WHERE))
            with gr.Column(scale=3, min_width=280):
                heat = gr.Image(
                    label="Where the model looks",
                    interactive=False,
                    buttons=["fullscreen"],
                    elem_id="heat",
                )
        nearest = gr.HTML(elem_id="nearest")
        if no_map:
            gr.HTML(hint(no_map), elem_id="no_map")

        _take_uploads_only(picture)
        # Without gradio's own preprocessing, which would open the file with any of Pillow's decoders.
        raw: dict[str, Any] = {"preprocess": False, "api_visibility": "private", "concurrency_id": "model"}
        answered = picture.change(answer, [picture], [answers, nearest], **raw)
        if not no_map:
            answered.then(look, [picture, task], [where, label, heat], **raw)
            task.input(look, [picture, task], [where, label, heat], **raw)
            label.input(look_again, [picture, task, label], [heat], **raw)
    return page


def heat_map(pipe: ArtGraphPipeline, path: str, task: str, label: str) -> Image.Image:
    """Where the model looks for a label, laid over the picture in a file.

    Raises:
        ValueError: if the picture cannot be read, there is no such label, or the model gives no map.
    """
    heat = _heat(pipe, path, task, label)  # (h, w)
    try:
        shown = read_picture({"path": path}, at_least=SHOWN_SIDE)
    except BadPictureError as error:
        raise ValueError(f"The picture cannot be read: {error.reason}.") from error
    scale = SHOWN_SIDE / max(shown.size)
    shown = shown.resize([max(1, round(side * scale)) for side in shown.size], Image.Resampling.BICUBIC)
    return overlay(shown, heat, pipe.image_processor)


def _heat(pipe: ArtGraphPipeline, image: Any, task: str, label: str) -> Tensor:
    model: Any = pipe.model
    prepared = pipe.preprocess(image)  # as for the labels, so that it is the map of what they were made of
    if prepared["error"] is not None:
        raise ValueError(f"The picture cannot be read: {prepared['error']}.")
    pixel_values = prepared["pixel_values"].to(model.device, model.backbone.dtype)  # (1, 3, H, W)
    return attention_map(model, pixel_values, task, label)


def _why_no_map(pipe: ArtGraphPipeline) -> str:
    """What is wrong with the model's attentions, or with where its image processor looks."""
    task, blank = pipe.model.config.tasks[0], Image.new("RGB", (64, 64))
    try:
        overlay(blank, _heat(pipe, blank, task.name, task.labels[0]), pipe.image_processor)
    except ValueError as error:
        return str(error)
    return ""


def _take_uploads_only(component: gr.Image) -> None:
    """gradio would fetch an address that is given in the place of an uploaded file."""
    move = component.async_move_resource_to_block_cache

    async def move_uploaded(path: Any) -> str | None:
        if ADDRESS.match(str(path)):
            raise gr.Error("A picture is uploaded: nothing is fetched from an address.")
        return await move(path)

    component.async_move_resource_to_block_cache = move_uploaded  # type: ignore[method-assign, assignment]


def _uploaded_file(upload: Any, component: gr.Image) -> str | None:
    """The path of what a visitor has uploaded. gradio has checked it before; this is the second lock."""
    if upload is None:
        return None
    path = Path(upload.get("path") or "") if isinstance(upload, Mapping) else Path()
    if not path.resolve().is_relative_to(Path(component.GRADIO_CACHE).resolve()):
        raise gr.Error("This is no file that was uploaded here.")
    return str(path)
