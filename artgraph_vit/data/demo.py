"""The embedded dataset: little paintings in the ArtGraph layout, painted with numpy and Pillow, without a download.

Each label has a visible cause. Genre is the composition, artist the palette and the angle and size of the hand's
strokes, tags the things painted in; style is how the paint is then laid, media the pigment and the ground, whose bare
rim shows around the picture. Many labels are left unrecorded, as in a real catalogue, and most artists are rare.
In the setting "hard" all labels have a long tail, some are wrong or forgotten, and the pictures are worn.
"""

from __future__ import annotations

import csv
import json
import os
import shutil
from collections.abc import Iterable
from colorsys import hsv_to_rgb
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw
from tqdm.auto import tqdm

from ..errors import UserError
from .painting import GENRES, GROUNDS, PIGMENTS, STYLES, THINGS, Colour, Hand

FIRST_NAMES = ("ada", "bruno", "clara", "dario", "elsa", "felix", "greta", "hugo", "iris", "jonas", "karla", "leo")
FAMILY_NAMES = ("verdigris", "ochre", "umber", "sienna", "gamboge", "smalt", "madder", "orpiment", "celadon", "bistre")
KNOWN_ARTISTS, RARE_ARTISTS = 8, 26
RECORD = "synthetic.json"  # written last: a folder with it is complete


@dataclass(frozen=True)
class Setting:
    """How hard the dataset is.

    Args:
        tail (`float`, *optional*, defaults to 1): how often a label is drawn, against the one before it.
        wrong (`float`, *optional*, defaults to 0): the share of artists, styles and genres that are recorded wrongly.
        forgotten (`float`, *optional*, defaults to 0): the share of things painted in that is not among the tags.
        wear (`float`, *optional*, defaults to 0): standard deviation of the noise on the pixels, of 255; brightness
            and contrast vary with it.
        train, validation (`float`, *optional*, default to 0.7 and 0.15): the shares of these splits.
    """

    tail: float = 1.0
    wrong: float = 0.0
    forgotten: float = 0.0
    wear: float = 0.0
    train: float = 0.7
    validation: float = 0.15


SETTINGS = {
    "plain": Setting(),
    "hard": Setting(tail=0.7, wrong=0.1, forgotten=0.2, wear=14.0, train=0.25, validation=0.25),
}


def paint_artgraph(
    folder: str | Path,
    num_artworks: int = 1600,
    size: int = 96,
    seed: int = 0,
    progress: bool = True,
    setting: str = "plain",
) -> Path:
    """Paints the dataset; does nothing if the folder already holds the same one.

    Args:
        folder (`str` or `Path`): where `artgraph_dataset.csv`, `images/` and `splits/` are written.
        num_artworks (`int`, *optional*, defaults to 1600): at least 100.
        size (`int`, *optional*, defaults to 96): edge of the square pictures in pixels, at least 32.
        seed (`int`, *optional*, defaults to 0): the same arguments give the same bytes.
        progress (`bool`, *optional*, defaults to `True`): show a progress bar.
        setting (`str`, *optional*, defaults to `"plain"`): one of `SETTINGS`.

    Raises:
        UserError: if an argument is too small, or the folder holds something else.
    """
    if num_artworks < 100 or size < 32:
        raise UserError(f"num_artworks={num_artworks}, size={size}: paint at least 100 artworks of 32 pixels.")
    folder = Path(folder)
    record: dict[str, int | str] = {"num_artworks": num_artworks, "size": size, "seed": seed}
    if setting != "plain":
        record["setting"] = setting
    if (folder / RECORD).is_file() and json.loads((folder / RECORD).read_text()) == record:
        return folder
    if folder.exists():
        raise UserError(f"{folder} holds something else than this dataset: delete it, or choose another folder.")
    unfinished = folder.with_name(f"{folder.name}.unfinished-{os.getpid()}")
    shutil.rmtree(unfinished, ignore_errors=True)
    (unfinished / "images").mkdir(parents=True)
    rows = []
    for index in tqdm(range(num_artworks), desc="Painting", unit="picture", disable=not progress):
        picture, row = paint_artwork(index, size, seed, setting)
        picture.save(unfinished / "images" / row["image"], quality=92)
        rows.append(row)
    with open(unfinished / "artgraph_dataset.csv", "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    _write_splits(unfinished / "splits", [row["image"] for row in rows], seed, SETTINGS[setting])
    (unfinished / RECORD).write_text(json.dumps(record))
    unfinished.rename(folder)
    return folder


def paint_artwork(
    index: int, size: int = 96, seed: int = 0, setting: str = "plain"
) -> tuple[Image.Image, dict[str, str]]:
    """One painting and its row of the csv. It depends on its own index, the seed and the setting alone."""
    rng = np.random.default_rng((seed, index))
    how = SETTINGS[setting]
    artist = _draw_artist(rng, how)
    hand = _hand_of(artist, seed)
    # An artist has habits: in half of the works the favourite genre and style.
    genre = list(GENRES)[artist % len(GENRES)] if rng.random() < 0.3 else _draw(rng, GENRES, how)
    style = list(STYLES)[artist % len(STYLES)] if rng.random() < 0.3 else _draw(rng, STYLES, how)
    things = [
        tag
        for rank, (tag, (frequency, _)) in enumerate(THINGS.items())
        if rng.random() < (frequency if how.tail == 1 else 0.5 * how.tail**rank)
    ]
    pigment, ground = _draw(rng, PIGMENTS, how), _draw(rng, GROUNDS, how)

    picture = Image.new("RGB", (size, size), hand.sky)
    canvas = ImageDraw.Draw(picture)
    GENRES[genre](canvas, hand, size, rng)
    places = rng.permutation(4)
    for tag, place in zip(things, places, strict=False):
        x, y = np.array([0.27 + 0.46 * (place % 2), 0.27 + 0.46 * (place // 2)]) + rng.uniform(-0.04, 0.04, 2)
        THINGS[tag][1](canvas, size * x, size * y, size * rng.uniform(0.2, 0.24))
    things = things[: len(places)]
    pixels = STYLES[style](picture, hand, rng)
    pixels = GROUNDS[ground](PIGMENTS[pigment](pixels, rng), rng)
    if how.wear:
        pixels = 128 + (pixels - 128) * rng.uniform(0.6, 1.0) + how.wear * rng.normal(0, 1.5)
        pixels = pixels + rng.normal(0, how.wear, pixels.shape)

    name = "unknown-artist" if rng.random() < 0.04 else _artist_name(artist)
    has_tags, has_media = rng.random() > 0.1, rng.random() > 0.45
    if how.wrong:
        artist = _draw_artist(rng, how) if rng.random() < how.wrong else artist
        genre = _draw(rng, GENRES, how) if rng.random() < how.wrong else genre
        style = _draw(rng, STYLES, how) if rng.random() < how.wrong else style
        name = name if name == "unknown-artist" else _artist_name(artist)
        things = [tag for tag in things if rng.random() > how.forgotten]
    row = {
        "image": f"{name}_{index:05d}.jpg",
        "artist": "" if name == "unknown-artist" else name,
        "style": str(style),
        "genre": str(genre),
        "tags": ", ".join(things) if has_tags else "",
        "media": f"{pigment}, {ground}" if has_media else "",
    }
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8)), row


# ---- artist: a palette and a hand ----


def _draw(rng: np.random.Generator, labels: Iterable[str], how: Setting) -> str:
    names = list(labels)
    if how.tail == 1:
        return rng.choice(names)
    shares = how.tail ** np.arange(len(names))
    return rng.choice(names, p=shares / shares.sum())


def _draw_artist(rng: np.random.Generator, how: Setting) -> int:
    if how.tail != 1:
        shares = 1 / np.arange(1, KNOWN_ARTISTS + RARE_ARTISTS + 1)  # Zipf's law
        return int(rng.choice(len(shares), p=shares / shares.sum()))
    return int(rng.integers(KNOWN_ARTISTS)) if rng.random() < 0.85 else KNOWN_ARTISTS + int(rng.integers(RARE_ARTISTS))


def _artist_name(artist: int) -> str:
    return f"{FIRST_NAMES[artist % len(FIRST_NAMES)]}-{FAMILY_NAMES[artist % len(FAMILY_NAMES)]}"


def _hand_of(artist: int, seed: int) -> Hand:
    rng = np.random.default_rng((seed, 10**6, artist))
    is_rare = artist >= KNOWN_ARTISTS
    # The known artists share out the colour circle between them; the rare ones paint in muted colours.
    hue = rng.random() if is_rare else artist / KNOWN_ARTISTS
    saturation = 0.12 if is_rare else 0.75

    def colour(turn: float, saturation: float, value: float) -> Colour:
        red, green, blue = hsv_to_rgb((hue + turn) % 1, saturation, value)
        return int(255 * red), int(255 * green), int(255 * blue)

    return Hand(
        sky=colour(0.0, 0.55 * saturation, 0.92),
        ground=colour(0.06, saturation, 0.62),
        accent=colour(-0.08, saturation, 0.85),
        light=colour(0.03, 0.2 * saturation, 0.98),
        dark=colour(0.0, saturation, 0.3),
        angle=np.pi * (artist % 4) / 4,
        size=0.8 + 0.5 * (artist % 3) / 2,
    )


def _write_splits(folder: Path, names: list[str], seed: int, how: Setting) -> None:
    order = np.random.default_rng((seed, 2)).permutation(len(names))
    first, second = int(how.train * len(names)), int(round(how.train + how.validation, 6) * len(names))
    folder.mkdir()
    for split, chosen in (("train", order[:first]), ("val", order[first:second]), ("test", order[second:])):
        (folder / f"{split}.txt").write_text(
            "".join(f"{names[index]}\n" for index in sorted(chosen)), encoding="utf-8"
        )
