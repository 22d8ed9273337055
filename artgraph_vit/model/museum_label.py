"""`describe`: a prediction as one sentence, in the manner of the label beside a painting.

The vocabularies are ArtGraph's: slugs for artists, nouns for genres and tags, names of movements for styles. A label
that is written otherwise is taken as it is. Travels to the Hub with the weights.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

MOST_TAGS = 5
_PARTICLES = re.compile("van|von|der|den|de|del|della|di|da|la|le|du|of|the")
_SUPPORTS = re.compile(
    "board|canvas|cardboard|ceramic|copper|fabric|glass|ivory|linen|marble|masonite|metal|panel|paper|parchment|"
    "plaster|porcelain|silk|stone|tin|vellum|wall|wood"
)
_COUNTED = re.compile("building|city|creature|drawing|figure|king|painting|picture")  # whatever their endings
_UNCOUNTED = re.compile(
    "art|death|fire|fish|food|fruit|grass|hair|history|ice|light|love|moon|music|night|sea|sheep|sky|snow|sun|war|"
    "water|wine|.*(s|ism|ity|ing|ure|graphy|logy|ness)"
)
_IRREGULAR = {"child": "children", "gentleman": "gentlemen", "man": "men", "person": "people", "woman": "women"}


def describe(prediction: Mapping[str, Any]) -> str:
    """Makes one sentence of a prediction; what is unknown is left out.

    Args:
        prediction (`Mapping[str, list]`): of one picture, as [`ArtGraphPipeline`] returns it.

    Returns:
        "Attributed to Claude Monet; a landscape in the Impressionist style; oil on canvas; with trees and water."
    """
    if not isinstance(prediction, Mapping):
        raise TypeError("describe takes the answer for one picture: give one of the list.")
    if "error" in prediction:
        return f"This picture cannot be read: {prediction['error']}."
    answers = {task: entries for task, entries in prediction.items() if isinstance(entries, (list, tuple))}
    known = {task: [entry["label"] for entry in entries if _is_known(entry)] for task, entries in answers.items()}
    # What is best is not said by the second best.
    best = {task: entries[0] for task, entries in answers.items() if entries and _is_known(entries[0])}
    parts = [
        _artist(best.get("artist")),
        _genre_and_style(best.get("genre"), best.get("style")),
        _media(known.get("media", ())),
        _tags(known.get("tags", ())[:MOST_TAGS]),
    ]
    said = ("artist", "genre", "style", "media", "tags")
    parts += [f"{task.replace('_', ' ')}: {best[task]['label']}" for task in best if task not in said]
    sentence = "; ".join(part for part in parts if part) or "nothing is known of this picture"
    return f"{sentence[0].upper()}{sentence[1:]}."


def _is_known(entry: Mapping[str, Any]) -> bool:
    return bool(entry["label"].strip()) and not entry["label"].lower().startswith("unknown")


def _artist(entry: Mapping[str, Any] | None) -> str:
    if entry is None:
        return ""
    if entry.get("means"):  # `other`
        return "by an artist whom the model does not name"
    label = entry["label"]
    if not label.islower() or " " in label:
        return f"attributed to {label}"
    words = [word if _PARTICLES.fullmatch(word) else word.capitalize() for word in label.split("-")]
    words[0] = words[0].capitalize()  # Le Corbusier
    return f"attributed to {' '.join(words)}"


def _genre_and_style(genre: Mapping[str, Any] | None, style: Mapping[str, Any] | None) -> str:
    parts = []
    if genre is not None and not genre.get("means"):
        noun = _without_brackets(genre["label"]).replace("-", " ")
        noun = f"{noun} work" if noun in ("abstract", "figurative") else noun
        parts.append(f"{'an' if noun[:1].lower() in 'aeiou' else 'a'} {noun}")
    if style is not None and not style.get("means"):
        parts.append(f"in the {_adjective(_without_brackets(style['label']))} style")
    return " ".join(parts)


def _adjective(style: str) -> str:
    """Of a movement: Impressionist, Romantic, Neoclassical, Baroque."""
    words = re.split(r"([ -])", style)
    last = words[-1]
    if last.lower().endswith("icism"):
        words[-1] = last[:-3] + ("al" if last.lower().endswith("classicism") else "")
    elif last.lower().endswith("ism"):
        words[-1] = last[:-1] + "t"
    return "".join(word[:1].upper() + word[1:] if len(word) > 1 else word for word in words)


def _media(labels: Sequence[str]) -> str:
    supports = [label for label in labels if _SUPPORTS.fullmatch(label)]
    materials = listed([label for label in labels if label not in supports])
    return f"{materials} on {listed(supports)}".strip() if supports else materials


def _tags(labels: Sequence[str]) -> str:
    return f"with {listed([_plural(label.replace('-', ' ')) for label in labels])}" if labels else ""


def _plural(noun: str) -> str:
    is_name = noun.isupper() or noun.startswith(("Christ", "Jesus", "Virgin"))
    noun = noun if is_name else noun[:1].lower() + noun[1:]
    last = noun.split(" ")[-1]
    if last in _IRREGULAR:
        return noun.removesuffix(last) + _IRREGULAR[last]
    is_plural = " and " in noun or last in _IRREGULAR.values()
    if is_plural or (_UNCOUNTED.fullmatch(last) and not _COUNTED.fullmatch(last)):
        return noun
    if re.search(r"[^aeiou]y$", last):
        return f"{noun[:-1]}ies"
    return f"{noun}es" if last.endswith(("x", "ch", "sh")) else f"{noun}s"


def _without_brackets(label: str) -> str:
    return re.sub(r"\s*\([^)]*\)", "", label).strip() or label


def listed(words: Sequence[str]) -> str:
    """ "a, b and c"."""
    return " and ".join(part for part in (", ".join(words[:-1]), *words[-1:]) if part)
