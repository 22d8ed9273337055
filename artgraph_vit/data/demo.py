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
from collections.abc import Callable, Iterable, Sequence
from colorsys import hsv_to_rgb
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFilter
from tqdm.auto import tqdm

from ..errors import UserError

Canvas = ImageDraw.ImageDraw
Random = np.random.Generator
Colour = tuple[int, int, int]
Shape = tuple[str, Sequence[float], Colour, int]

FIRST_NAMES = ("ada", "bruno", "clara", "dario", "elsa", "felix", "greta", "hugo", "iris", "jonas", "karla", "leo")
FAMILY_NAMES = ("verdigris", "ochre", "umber", "sienna", "gamboge", "smalt", "madder", "orpiment", "celadon", "bistre")
KNOWN_ARTISTS, RARE_ARTISTS = 8, 26
RECORD = "synthetic.json"  # written last: a folder with it is complete


@dataclass(frozen=True)
class Setting:
    tail: float = 1.0  # how often a label is drawn, against the one before it
    wrong: float = 0.0  # the share of artists, styles and genres that are recorded wrongly
    forgotten: float = 0.0  # the share of things painted in that is not among the tags
    wear: float = 0.0  # standard deviation of the noise on the pixels, of 255; brightness and contrast vary with it
    train: float = 0.7  # the shares of these splits
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
    how = SETTINGS[setting]
    order = np.random.default_rng((seed, 2)).permutation(num_artworks)
    ends = [int(how.train * num_artworks), int(round(how.train + how.validation, 6) * num_artworks)]
    (unfinished / "splits").mkdir()
    for split, chosen in zip(("train", "val", "test"), np.split(order, ends), strict=True):
        names = "".join(f"{rows[index]['image']}\n" for index in sorted(chosen))
        (unfinished / "splits" / f"{split}.txt").write_text(names, encoding="utf-8")
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
    frequencies = FREQUENCIES if how.tail == 1 else [0.5 * how.tail**rank for rank in range(len(THINGS))]
    things = [tag for tag, frequency in zip(THINGS, frequencies, strict=True) if rng.random() < frequency]
    pigment, ground = _draw(rng, PIGMENTS, how), _draw(rng, GROUNDS, how)

    picture = Image.new("RGB", (size, size), hand.sky)
    canvas = ImageDraw.Draw(picture)
    GENRES[genre](canvas, hand, size, rng)
    places = rng.permutation(4)
    for tag, place in zip(things, places, strict=False):
        x, y = np.array([0.27 + 0.46 * (place % 2), 0.27 + 0.46 * (place // 2)]) + rng.uniform(-0.04, 0.04, 2)
        radius = size * rng.uniform(0.2, 0.24)
        for shape in THINGS[tag]:
            _paint_shape(canvas, shape, size * x, size * y, radius)
    things = things[: len(places)]
    pixels = GROUNDS[ground](PIGMENTS[pigment](STYLES[style](picture, hand, rng), rng), rng)
    if how.wear:
        pixels = 128 + (pixels - 128) * rng.uniform(0.6, 1.0) + how.wear * rng.normal(0, 1.5)
        pixels = pixels + rng.normal(0, how.wear, pixels.shape)

    is_recorded = rng.random() >= 0.04
    has_tags, has_media = rng.random() > 0.1, rng.random() > 0.45
    if how.wrong:
        artist = _draw_artist(rng, how) if rng.random() < how.wrong else artist
        genre = _draw(rng, GENRES, how) if rng.random() < how.wrong else genre
        style = _draw(rng, STYLES, how) if rng.random() < how.wrong else style
        things = [tag for tag in things if rng.random() > how.forgotten]
    name = f"{FIRST_NAMES[artist % len(FIRST_NAMES)]}-{FAMILY_NAMES[artist % len(FAMILY_NAMES)]}"
    row = {
        "image": f"{name if is_recorded else 'unknown-artist'}_{index:05d}.jpg",
        "artist": name if is_recorded else "",
        "style": str(style),
        "genre": str(genre),
        "tags": ", ".join(things) if has_tags else "",
        "media": f"{pigment}, {ground}" if has_media else "",
    }
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8)), row


def _by_label(*painters: Callable) -> dict[str, Callable]:
    """Each painter is called like the label it paints."""
    return {painter.__name__.strip("_").replace("_", " "): painter for painter in painters}


def _draw(rng: Random, labels: Iterable[str], how: Setting) -> str:
    names = list(labels)
    if how.tail == 1:
        return rng.choice(names)
    shares = how.tail ** np.arange(len(names))
    return rng.choice(names, p=shares / shares.sum())


# ---- artist: a palette and a hand ----


@dataclass(frozen=True)
class Hand:
    """How an artist paints: five colours, and the angle (radians) and size of the strokes."""

    sky: Colour
    ground: Colour
    accent: Colour
    light: Colour
    dark: Colour
    angle: float
    size: float


def _draw_artist(rng: Random, how: Setting) -> int:
    if how.tail != 1:
        shares = 1 / np.arange(1, KNOWN_ARTISTS + RARE_ARTISTS + 1)  # Zipf's law
        return int(rng.choice(len(shares), p=shares / shares.sum()))
    return int(rng.integers(KNOWN_ARTISTS)) if rng.random() < 0.85 else KNOWN_ARTISTS + int(rng.integers(RARE_ARTISTS))


def _hand_of(artist: int, seed: int) -> Hand:
    rng = np.random.default_rng((seed, 10**6, artist))
    # The known artists share out the colour circle between them; the rare ones paint in muted colours.
    hue, saturation = (artist / KNOWN_ARTISTS, 0.75) if artist < KNOWN_ARTISTS else (rng.random(), 0.12)

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


# ---- genre: the composition ----


def _landscape(canvas: Canvas, hand: Hand, size: float, rng: Random) -> None:
    horizon = size * rng.uniform(0.5, 0.6)
    for height, colour in ((0.0, hand.accent), (0.16, hand.ground)):
        hills = [
            (x, horizon + size * (height - 0.09 * np.sin(x / size * 7 + rng.uniform(0, 6))))
            for x in np.arange(0, size + 8, 8)
        ]
        canvas.polygon([(0, size), *hills, (size, size)], fill=colour)


def _marina(canvas: Canvas, hand: Hand, size: float, rng: Random) -> None:
    horizon = size * rng.uniform(0.3, 0.4)
    canvas.rectangle((0, horizon, size, size), fill=hand.ground)
    for row in np.arange(horizon + 4, size, size / 12):
        for x in np.arange(-size / 8 + rng.uniform(0, 8), size, size / 5):
            canvas.arc((x, row, x + size / 5, row + size / 10), 200, 340, fill=hand.light, width=2)


def _portrait(canvas: Canvas, hand: Hand, size: float, rng: Random) -> None:
    canvas.rectangle((0, 0, size, size), fill=hand.dark)
    x = size * rng.uniform(0.46, 0.54)
    canvas.ellipse((x - 0.38 * size, 0.68 * size, x + 0.38 * size, 1.4 * size), fill=hand.accent)
    canvas.ellipse((x - 0.21 * size, 0.18 * size, x + 0.21 * size, 0.74 * size), fill=(232, 190, 160))
    for eye in (-0.08, 0.08):
        canvas.ellipse((x + (eye - 0.03) * size, 0.4 * size, x + (eye + 0.03) * size, 0.45 * size), fill=(40, 30, 30))


def _still_life(canvas: Canvas, hand: Hand, size: float, rng: Random) -> None:
    table = size * rng.uniform(0.58, 0.66)
    canvas.rectangle((0, table, size, size), fill=hand.dark)
    vase = ((0.3, 0.3), (0.5, 0.3), (0.56, 0.8), (0.24, 0.8))
    canvas.polygon([(x * size, y * size) for x, y in vase], fill=hand.accent)
    for x in (0.62, 0.76, 0.9):
        radius = size * rng.uniform(0.08, 0.1)
        canvas.ellipse((x * size - radius, 0.8 * size - 2 * radius, x * size + radius, 0.8 * size), fill=hand.light)


def _cityscape(canvas: Canvas, hand: Hand, size: float, rng: Random) -> None:
    x = 0.0
    while x < size:
        width, top = size * rng.uniform(0.12, 0.2), size * rng.uniform(0.15, 0.55)
        colour = (hand.dark, hand.ground, hand.accent)[int(rng.integers(3))]
        canvas.rectangle((x, top, x + width, size), fill=colour)
        for y in np.arange(top + 0.05 * size, 0.96 * size, size / 9):
            canvas.rectangle((x + 0.03 * size, y, x + width - 0.04 * size, y + size / 28), fill=hand.light)
        x += width


def _abstract(canvas: Canvas, hand: Hand, size: float, rng: Random) -> None:
    for colour in (hand.accent, hand.dark, hand.light, hand.ground, hand.accent):
        (x, y), radius = rng.uniform(0, size, 2), size * rng.uniform(0.12, 0.3)
        canvas.regular_polygon((x, y, radius), int(rng.integers(3, 5)), int(rng.integers(90)), fill=colour)
    for _ in range(3):
        canvas.line([tuple(point) for point in rng.uniform(0, size, (2, 2))], fill=hand.dark, width=3)


GENRES: dict[str, Callable[[Canvas, Hand, float, Random], None]] = _by_label(
    _abstract, _cityscape, _landscape, _marina, _portrait, _still_life
)


# ---- tags: the things painted in, in colours of their own ----

NIGHT, ORANGE = (20, 24, 70), (225, 120, 20)


def _disc(x: float, y: float, radius: float, colour: Colour) -> Shape:
    return ("ellipse", (x - radius, y - radius, x + radius, y + radius), colour, 0)


# Points in radii about the centre, a colour, and a width in pixels: of a line, or of what an ellipse has more at each
# side. The names have letters of both cases, as in ArtGraph.
THINGS: dict[str, list[Shape]] = {
    "Moon": [_disc(0, 0, 1, NIGHT), _disc(0, 0, 0.7, (250, 250, 225)), ("ellipse", (-0.3, -0.8, 1, 0.6), NIGHT, 0)],
    "Sun": [
        *(("line", (0, 0, np.cos(turn), np.sin(turn)), (255, 200, 0), 3) for turn in np.arange(8) * np.pi / 4),
        _disc(0, 0, 0.6, (255, 225, 30)),
    ],
    "Tree": [
        ("rectangle", (-0.15, 0, 0.15, 1.1), (90, 55, 25), 0),
        ("ellipse", (-0.8, -1.1, 0.8, 0.4), (20, 130, 40), 0),
    ],
    "birds": [("line", (0, 0.2, side * 0.5, -0.5, side * 1.1, 0), (10, 10, 15), 4) for side in (-1, 1)],
    "boats": [
        ("polygon", (-1.1, 0.4, 1.1, 0.4, 0.7, 1, -0.7, 1), (70, 35, 20), 0),
        ("polygon", (0, 0.3, 0, -1.1, 0.9, 0.3), (255, 255, 255), 0),
    ],
    "cats": [
        ("ellipse", (-0.7, -0.1, 0.7, 1.1), ORANGE, 0),
        ("ellipse", (-0.5, -0.8, 0.5, 0.2), ORANGE, 0),
        *(("polygon", (side * 0.5, -0.4, side * 0.5, -1.2, 0, -0.7), ORANGE, 0) for side in (-1, 1)),
        *(("ellipse", (side * 0.2, -0.45, side * 0.2, -0.2), (20, 20, 20), 2) for side in (-1, 1)),
    ],
    "comets": [
        ("polygon", (0, 0, 1.3, -0.7, 1.3, -0.1), (160, 230, 255), 0),
        ("ellipse", (-0.3, -0.3, 0.4, 0.4), (255, 255, 255), 0),
    ],
    "flowers": [
        *(_disc(0.6 * np.cos(turn), 0.6 * np.sin(turn), 0.4, (240, 70, 160)) for turn in np.arange(6) * np.pi / 3),
        _disc(0, 0, 0.35, (255, 230, 60)),
    ],
    "houses-and-buildings": [
        ("rectangle", (-0.8, -0.1, 0.8, 0.9), (245, 240, 225), 0),
        ("polygon", (-1, -0.1, 0, -1, 1, -0.1), (190, 30, 25), 0),
        ("rectangle", (-0.2, 0.3, 0.2, 0.9), (60, 40, 30), 0),
    ],
}
FREQUENCIES = (0.2, 0.22, 0.25, 0.2, 0.18, 0.18, 0.008, 0.22, 0.22)  # in their order


def _paint_shape(canvas: Canvas, shape: Shape, x: float, y: float, radius: float) -> None:
    kind, coordinates, colour, width = shape
    points = [radius * coordinate + centre for coordinate, centre in zip(coordinates, cycle((x, y)), strict=False)]
    if kind == "line":
        canvas.line(points, fill=colour, width=width)
    elif kind == "ellipse":
        left, top, right, bottom = points
        canvas.ellipse((left - width, top, right + width, bottom), fill=colour)
    else:
        paint = canvas.polygon if kind == "polygon" else canvas.rectangle
        paint(points, fill=colour)


# ---- style: how the paint is laid ----


def _marks(
    picture: Image.Image, rng: Random, paper: Colour, count: int, kind: str, coordinates: Sequence[float], width: int
) -> np.ndarray:
    """Lays the picture anew with marks, each in the colour it covers, slightly varied."""
    laid = Image.new("RGB", picture.size, paper)
    canvas = ImageDraw.Draw(laid)
    source = np.asarray(picture).astype(int)
    points = rng.uniform(0, picture.width, (count, 2))
    tones = rng.integers(-18, 19, (count, 3))
    for (x, y), tone in zip(points, tones, strict=True):
        colour = tuple((source[int(y), int(x)] + tone).clip(0, 255))
        _paint_shape(canvas, (kind, coordinates, colour, width), x, y, 1.0)
    return np.asarray(laid).astype(float)


def _pointillism(picture: Image.Image, hand: Hand, rng: Random) -> np.ndarray:
    radius = 0.019 * picture.width * hand.size
    return _marks(picture, rng, (250, 246, 235), 1500, "ellipse", (-radius, -radius, radius, radius), 0)


def _impressionism(picture: Image.Image, hand: Hand, rng: Random) -> np.ndarray:
    length = 0.06 * picture.width * hand.size
    dx, dy = length * np.cos(hand.angle), length * np.sin(hand.angle)
    return _marks(picture, rng, hand.ground, 1300, "line", (-dx, -dy, dx, dy), 3)


def _etching(picture: Image.Image, hand: Hand, rng: Random) -> np.ndarray:
    pixels = np.asarray(picture).astype(float)
    y, x = np.mgrid[: picture.height, : picture.width]
    across = x * np.sin(hand.angle + np.pi / 4) + y * np.cos(hand.angle + np.pi / 4)
    lines = (across / (4.5 * hand.size)) % 1 < 0.25 + 0.55 * (1 - pixels.mean(-1) / 255)
    return np.where(lines[..., None], pixels * 0.45, 0.3 * pixels + 0.7 * 245)


def _cubism(picture: Image.Image, hand: Hand, rng: Random) -> np.ndarray:
    size, pixels = picture.width, np.asarray(picture).astype(float)
    seeds = rng.uniform(0, size, (int(75 / hand.size), 2))
    y, x = np.mgrid[:size, :size]
    distances = (x[..., None] - seeds[:, 0]) ** 2 + (y[..., None] - seeds[:, 1]) ** 2
    cells = distances.argmin(-1)
    counts = np.bincount(cells.ravel(), minlength=len(seeds)).clip(min=1)
    means = np.stack([np.bincount(cells.ravel(), pixels[..., c].ravel(), len(seeds)) / counts for c in range(3)], -1)
    edges = (cells != np.roll(cells, 1, 0)) | (cells != np.roll(cells, 1, 1))
    return np.where(edges[..., None], means[cells] * 0.35, means[cells])


def _tonalism(picture: Image.Image, hand: Hand, rng: Random) -> np.ndarray:
    soft = np.asarray(picture.filter(ImageFilter.GaussianBlur(0.03 * picture.width))).astype(float)
    return soft * 0.8 + 0.2 * soft.mean((0, 1))


def _byzantine(picture: Image.Image, hand: Hand, rng: Random) -> np.ndarray:
    size, tile = picture.width, max(4, picture.width // 16)
    pixels = np.asarray(picture.resize((size // tile, size // tile), Image.Resampling.BOX)).astype(float)
    pixels = np.kron(pixels + rng.normal(0, 14, (*pixels.shape[:2], 1)), np.ones((tile, tile, 1)))
    pixels = np.pad(pixels, ((0, size - len(pixels)), (0, size - len(pixels)), (0, 0)), mode="edge")
    pixels[::tile] = pixels[:, ::tile] = 60
    return pixels


def _ligne_claire(picture: Image.Image, hand: Hand, rng: Random) -> np.ndarray:
    edges = np.asarray(picture.convert("L").filter(ImageFilter.FIND_EDGES).filter(ImageFilter.MaxFilter(3)))
    flat = 0.65 * np.asarray(picture).astype(float) + 0.35 * 255
    return np.where(edges[..., None] > 30, 15.0, flat)


STYLES: dict[str, Callable[[Image.Image, Hand, Random], np.ndarray]] = _by_label(
    _byzantine, _cubism, _etching, _impressionism, _ligne_claire, _pointillism, _tonalism
)


# ---- media: the pigment, and the ground with its bare rim ----


def _oil(pixels: np.ndarray, rng: Random) -> np.ndarray:
    grey = pixels.mean(-1, keepdims=True)
    return grey + 1.25 * (pixels - grey)


def _watercolor(pixels: np.ndarray, rng: Random) -> np.ndarray:
    blots = np.asarray(Image.fromarray(rng.integers(0, 256, (6, 6), dtype=np.uint8)).resize(pixels.shape[1::-1]))
    return 0.55 * pixels + 0.45 * 255 + (blots[..., None] - 128.0) * 0.12


def _ink(pixels: np.ndarray, rng: Random) -> np.ndarray:
    grey = pixels.mean(-1, keepdims=True)
    return 128 + 1.3 * (0.55 * grey + 0.45 * pixels - 150)


PIGMENTS = _by_label(_ink, _oil, _watercolor)


def _with_rim(pixels: np.ndarray, grain: np.ndarray, colour: Colour) -> np.ndarray:
    rim = max(2, len(pixels) // 16)
    ground = np.array(colour, dtype=float) + grain[..., None]
    ground[rim:-rim, rim:-rim] = (pixels + 0.8 * grain[..., None])[rim:-rim, rim:-rim]
    return ground


def _canvas(pixels: np.ndarray, rng: Random) -> np.ndarray:
    y, x = np.mgrid[: len(pixels), : len(pixels)]
    return _with_rim(pixels, 14.0 * (np.sin(x * 1.6) * np.sin(y * 1.6)), (214, 196, 160))


def _paper(pixels: np.ndarray, rng: Random) -> np.ndarray:
    return _with_rim(pixels, rng.normal(0, 5, pixels.shape[:2]), (250, 250, 246))


def _panel(pixels: np.ndarray, rng: Random) -> np.ndarray:
    y, x = np.mgrid[: len(pixels), : len(pixels)]
    return _with_rim(pixels, 14.0 * np.sin(y * 0.9 + 1.5 * np.sin(x * 0.06 + rng.uniform(0, 6))), (120, 78, 42))


GROUNDS = _by_label(_canvas, _panel, _paper)
