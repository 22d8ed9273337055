"""The page's answers as HTML: the sentence, ranked labels with bars, and the nearest artworks.

Task names, labels and artworks' names are whatever a checkpoint or an index holds, so each text is escaped here.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from PIL import Image

from ..model.museum_label import describe, listed
from ..model.tasks import Task

NONE = "None is above its threshold."
TITLE = "What is in a painting?"
THUMBNAIL = 160  # pixels of the longer side
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
.task .means, .task .none, .hint {color: var(--body-text-color); opacity: .72; font-size: .85rem; margin: 0}
#picture img {width: 100%; height: 100%; object-fit: contain}
#heat img {max-height: 30rem; margin: auto}
.nearest {display: grid; grid-template-columns: repeat(auto-fill, minmax(8rem, 1fr)); gap: .8rem}
.nearest figure {margin: 0; min-width: 0}
.nearest img, .nearest .blank {width: 100%; aspect-ratio: 1; object-fit: contain; border-radius: .3rem;
  background: var(--background-fill-secondary)}
.nearest figcaption {font-size: .8rem; overflow-wrap: anywhere}
"""


def hint(text: str) -> str:
    """A line of explanation."""
    return f'<p class="hint">{escape(text)}</p>'


def heading(tasks: Sequence[Task]) -> str:
    """What the page does."""
    names = [task.name.replace("_", " ") for task in tasks]
    return f"<h1>{TITLE}</h1>{hint(f'One Vision Transformer looks at a picture once and names its {listed(names)}.')}"


def answer_html(answer: Mapping[str, Sequence[Mapping[str, Any]]], tasks: Sequence[Task]) -> str:
    """The sentence of an answer and a ranked list for each task.

    Args:
        answer (`Mapping`): of one picture, as [`ArtGraphPipeline`] returns it.
        tasks (`Sequence[Task]`): of the model.
    """
    lists = "".join(_task_html(task, answer[task.name]) for task in tasks)
    return f'<p class="sentence">{escape(describe(answer))}</p><div class="lists">{lists}</div>'


def _task_html(task: Task, entries: Sequence[Mapping[str, Any]]) -> str:
    kind = "any of them" if task.is_multi_label else "one of them"
    body = "".join(map(_entry_html, entries))
    body = f"<ol>{body}</ol>" if body else f'<p class="none">{NONE}</p>'
    return (
        f'<section class="task"><h3>{escape(task.name.replace("_", " "))} <small>{kind}</small></h3>{body}</section>'
    )


def _entry_html(entry: Mapping[str, Any]) -> str:
    percent = 100 * entry["score"]
    score = "&lt; 1 %" if percent < 0.5 else f"{percent:.0f} %"
    means = f'<p class="means">{escape(entry["means"])}</p>' if entry.get("means") else ""
    return (
        f'<li><div class="line"><span class="label">{escape(entry["label"])}</span>'
        f'<span class="score">{score}</span></div>'
        f'<div class="bar"><i style="width: {percent:.1f}%"></i></div>{means}</li>'
    )


def nearest_html(artworks: Sequence[Mapping[str, Any]]) -> str:
    """The nearest artworks, as [`EmbeddingIndex.nearest`] returns them, with their pictures."""
    figures = "".join(
        f"<figure>{_thumbnail_html(artwork['thumbnail'])}<figcaption>{escape(str(artwork['name']))}<br>"
        f"similarity {artwork['score']:.2f}</figcaption></figure>"
        for artwork in artworks
    )
    return f'<h3>The nearest artworks</h3><div class="nearest">{figures}</div>'


def _thumbnail_html(picture: Image.Image | None) -> str:
    if picture is None:
        return '<div class="blank"></div>'
    picture = picture.convert("RGB")
    picture.thumbnail((THUMBNAIL, THUMBNAIL))
    file = io.BytesIO()
    picture.save(file, "JPEG", quality=85)
    return f'<img alt="" src="data:image/jpeg;base64,{base64.b64encode(file.getvalue()).decode()}">'
