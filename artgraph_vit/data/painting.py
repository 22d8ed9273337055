"""How the embedded paintings are painted: one small function a genre, a thing, a style, a pigment and a ground.

The tables GENRES, THINGS, STYLES, PIGMENTS and GROUNDS name them by their labels; demo.py chooses among them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

Colour = tuple[int, int, int]
Painter = Callable[[ImageDraw.ImageDraw, "Hand", float, np.random.Generator], None]
Thing = Callable[[ImageDraw.ImageDraw, float, float, float], None]


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


# ---- genre: the composition ----


def _landscape(canvas: ImageDraw.ImageDraw, hand: Hand, size: float, rng: np.random.Generator) -> None:
    horizon = size * rng.uniform(0.5, 0.6)
    for height, colour in ((0.0, hand.accent), (0.16, hand.ground)):
        hills = [
            (x, horizon + size * (height - 0.09 * np.sin(x / size * 7 + rng.uniform(0, 6))))
            for x in np.arange(0, size + 8, 8)
        ]
        canvas.polygon([(0, size), *hills, (size, size)], fill=colour)


def _marina(canvas: ImageDraw.ImageDraw, hand: Hand, size: float, rng: np.random.Generator) -> None:
    horizon = size * rng.uniform(0.3, 0.4)
    canvas.rectangle((0, horizon, size, size), fill=hand.ground)
    for row in np.arange(horizon + 4, size, size / 12):
        for x in np.arange(-size / 8 + rng.uniform(0, 8), size, size / 5):
            canvas.arc((x, row, x + size / 5, row + size / 10), 200, 340, fill=hand.light, width=2)


def _portrait(canvas: ImageDraw.ImageDraw, hand: Hand, size: float, rng: np.random.Generator) -> None:
    canvas.rectangle((0, 0, size, size), fill=hand.dark)
    x = size * rng.uniform(0.46, 0.54)
    canvas.ellipse((x - 0.38 * size, 0.68 * size, x + 0.38 * size, 1.4 * size), fill=hand.accent)
    canvas.ellipse((x - 0.21 * size, 0.18 * size, x + 0.21 * size, 0.74 * size), fill=(232, 190, 160))
    for eye in (-0.08, 0.08):
        canvas.ellipse((x + (eye - 0.03) * size, 0.4 * size, x + (eye + 0.03) * size, 0.45 * size), fill=(40, 30, 30))


def _still_life(canvas: ImageDraw.ImageDraw, hand: Hand, size: float, rng: np.random.Generator) -> None:
    table = size * rng.uniform(0.58, 0.66)
    canvas.rectangle((0, table, size, size), fill=hand.dark)
    canvas.polygon(
        [(0.3 * size, 0.3 * size), (0.5 * size, 0.3 * size), (0.56 * size, 0.8 * size), (0.24 * size, 0.8 * size)],
        fill=hand.accent,
    )
    for x in (0.62, 0.76, 0.9):
        radius = size * rng.uniform(0.08, 0.1)
        canvas.ellipse((x * size - radius, 0.8 * size - 2 * radius, x * size + radius, 0.8 * size), fill=hand.light)


def _cityscape(canvas: ImageDraw.ImageDraw, hand: Hand, size: float, rng: np.random.Generator) -> None:
    x = 0.0
    while x < size:
        width, top = size * rng.uniform(0.12, 0.2), size * rng.uniform(0.15, 0.55)
        colour = (hand.dark, hand.ground, hand.accent)[int(rng.integers(3))]
        canvas.rectangle((x, top, x + width, size), fill=colour)
        for y in np.arange(top + 0.05 * size, 0.96 * size, size / 9):
            canvas.rectangle((x + 0.03 * size, y, x + width - 0.04 * size, y + size / 28), fill=hand.light)
        x += width


def _abstract(canvas: ImageDraw.ImageDraw, hand: Hand, size: float, rng: np.random.Generator) -> None:
    for colour in (hand.accent, hand.dark, hand.light, hand.ground, hand.accent):
        (x, y), radius = rng.uniform(0, size, 2), size * rng.uniform(0.12, 0.3)
        canvas.regular_polygon(
            (x, y, radius), n_sides=int(rng.integers(3, 5)), rotation=int(rng.integers(90)), fill=colour
        )
    for _ in range(3):
        canvas.line([tuple(point) for point in rng.uniform(0, size, (2, 2))], fill=hand.dark, width=3)


GENRES: dict[str, Painter] = {
    "abstract": _abstract,
    "cityscape": _cityscape,
    "landscape": _landscape,
    "marina": _marina,
    "portrait": _portrait,
    "still life": _still_life,
}


# ---- tags: the things painted in, around (x, y) with radius r, in colours of their own ----


def _sun(canvas: ImageDraw.ImageDraw, x: float, y: float, r: float) -> None:
    for turn in np.arange(0, 2 * np.pi, np.pi / 4):
        canvas.line((x, y, x + r * np.cos(turn), y + r * np.sin(turn)), fill=(255, 200, 0), width=3)
    canvas.ellipse((x - 0.6 * r, y - 0.6 * r, x + 0.6 * r, y + 0.6 * r), fill=(255, 225, 30))


def _moon(canvas: ImageDraw.ImageDraw, x: float, y: float, r: float) -> None:
    canvas.ellipse((x - r, y - r, x + r, y + r), fill=(20, 24, 70))
    canvas.ellipse((x - 0.7 * r, y - 0.7 * r, x + 0.7 * r, y + 0.7 * r), fill=(250, 250, 225))
    canvas.ellipse((x - 0.3 * r, y - 0.8 * r, x + 1.0 * r, y + 0.6 * r), fill=(20, 24, 70))


def _tree(canvas: ImageDraw.ImageDraw, x: float, y: float, r: float) -> None:
    canvas.rectangle((x - 0.15 * r, y, x + 0.15 * r, y + 1.1 * r), fill=(90, 55, 25))
    canvas.ellipse((x - 0.8 * r, y - 1.1 * r, x + 0.8 * r, y + 0.4 * r), fill=(20, 130, 40))


def _house(canvas: ImageDraw.ImageDraw, x: float, y: float, r: float) -> None:
    canvas.rectangle((x - 0.8 * r, y - 0.1 * r, x + 0.8 * r, y + 0.9 * r), fill=(245, 240, 225))
    canvas.polygon([(x - r, y - 0.1 * r), (x, y - r), (x + r, y - 0.1 * r)], fill=(190, 30, 25))
    canvas.rectangle((x - 0.2 * r, y + 0.3 * r, x + 0.2 * r, y + 0.9 * r), fill=(60, 40, 30))


def _boat(canvas: ImageDraw.ImageDraw, x: float, y: float, r: float) -> None:
    canvas.polygon(
        [(x - 1.1 * r, y + 0.4 * r), (x + 1.1 * r, y + 0.4 * r), (x + 0.7 * r, y + r), (x - 0.7 * r, y + r)],
        fill=(70, 35, 20),
    )
    canvas.polygon([(x, y + 0.3 * r), (x, y - 1.1 * r), (x + 0.9 * r, y + 0.3 * r)], fill=(255, 255, 255))


def _bird(canvas: ImageDraw.ImageDraw, x: float, y: float, r: float) -> None:
    for side in (-1, 1):
        canvas.line(
            (x, y + 0.2 * r, x + side * 0.5 * r, y - 0.5 * r, x + side * 1.1 * r, y), fill=(10, 10, 15), width=4
        )


def _flower(canvas: ImageDraw.ImageDraw, x: float, y: float, r: float) -> None:
    for turn in np.arange(0, 2 * np.pi, np.pi / 3):
        px, py = x + 0.6 * r * np.cos(turn), y + 0.6 * r * np.sin(turn)
        canvas.ellipse((px - 0.4 * r, py - 0.4 * r, px + 0.4 * r, py + 0.4 * r), fill=(240, 70, 160))
    canvas.ellipse((x - 0.35 * r, y - 0.35 * r, x + 0.35 * r, y + 0.35 * r), fill=(255, 230, 60))


def _cat(canvas: ImageDraw.ImageDraw, x: float, y: float, r: float) -> None:
    orange = (225, 120, 20)
    canvas.ellipse((x - 0.7 * r, y - 0.1 * r, x + 0.7 * r, y + 1.1 * r), fill=orange)
    canvas.ellipse((x - 0.5 * r, y - 0.8 * r, x + 0.5 * r, y + 0.2 * r), fill=orange)
    for side in (-1, 1):
        canvas.polygon(
            [(x + side * 0.5 * r, y - 0.4 * r), (x + side * 0.5 * r, y - 1.2 * r), (x, y - 0.7 * r)], fill=orange
        )
        canvas.ellipse((x + side * 0.2 * r - 2, y - 0.45 * r, x + side * 0.2 * r + 2, y - 0.2 * r), fill=(20, 20, 20))


def _comet(canvas: ImageDraw.ImageDraw, x: float, y: float, r: float) -> None:
    canvas.polygon([(x, y), (x + 1.3 * r, y - 0.7 * r), (x + 1.3 * r, y - 0.1 * r)], fill=(160, 230, 255))
    canvas.ellipse((x - 0.3 * r, y - 0.3 * r, x + 0.4 * r, y + 0.4 * r), fill=(255, 255, 255))


# Letters of both cases, as in ArtGraph; with how often each is painted.
THINGS: dict[str, tuple[float, Thing]] = {
    "Moon": (0.2, _moon),
    "Sun": (0.22, _sun),
    "Tree": (0.25, _tree),
    "birds": (0.2, _bird),
    "boats": (0.18, _boat),
    "cats": (0.18, _cat),
    "comets": (0.008, _comet),
    "flowers": (0.22, _flower),
    "houses-and-buildings": (0.22, _house),
}


# ---- style: how the paint is laid ----


def _marks(
    picture: Image.Image, hand: Hand, rng: np.random.Generator, paper: Colour, count: int, mark: Callable
) -> np.ndarray:
    """Lays the picture anew with marks, each in the colour it covers, slightly varied."""
    size = picture.width
    laid = Image.new("RGB", picture.size, paper)
    canvas = ImageDraw.Draw(laid)
    source = np.asarray(picture).astype(int)
    points = rng.uniform(0, size, (count, 2))
    tones = rng.integers(-18, 19, (count, 3))
    for (x, y), tone in zip(points, tones, strict=True):
        mark(canvas, x, y, tuple((source[int(y), int(x)] + tone).clip(0, 255)))
    return np.asarray(laid).astype(float)


def _pointillism(picture: Image.Image, hand: Hand, rng: np.random.Generator) -> np.ndarray:
    r = 0.019 * picture.width * hand.size

    def dot(canvas: ImageDraw.ImageDraw, x: float, y: float, colour: Colour) -> None:
        canvas.ellipse((x - r, y - r, x + r, y + r), fill=colour)

    return _marks(picture, hand, rng, (250, 246, 235), 1500, dot)


def _impressionism(picture: Image.Image, hand: Hand, rng: np.random.Generator) -> np.ndarray:
    length = 0.06 * picture.width * hand.size
    dx, dy = length * np.cos(hand.angle), length * np.sin(hand.angle)

    def stroke(canvas: ImageDraw.ImageDraw, x: float, y: float, colour: Colour) -> None:
        canvas.line((x - dx, y - dy, x + dx, y + dy), fill=colour, width=3)

    return _marks(picture, hand, rng, hand.ground, 1300, stroke)


def _etching(picture: Image.Image, hand: Hand, rng: np.random.Generator) -> np.ndarray:
    pixels = np.asarray(picture).astype(float)
    y, x = np.mgrid[: picture.height, : picture.width]
    across = x * np.sin(hand.angle + np.pi / 4) + y * np.cos(hand.angle + np.pi / 4)
    lines = (across / (4.5 * hand.size)) % 1 < 0.25 + 0.55 * (1 - pixels.mean(-1) / 255)
    return np.where(lines[..., None], pixels * 0.45, 0.3 * pixels + 0.7 * 245)


def _cubism(picture: Image.Image, hand: Hand, rng: np.random.Generator) -> np.ndarray:
    size, pixels = picture.width, np.asarray(picture).astype(float)
    seeds = rng.uniform(0, size, (int(75 / hand.size), 2))
    y, x = np.mgrid[:size, :size]
    distances = (x[..., None] - seeds[:, 0]) ** 2 + (y[..., None] - seeds[:, 1]) ** 2
    cells = distances.argmin(-1)
    counts = np.bincount(cells.ravel(), minlength=len(seeds)).clip(min=1)
    means = np.stack([np.bincount(cells.ravel(), pixels[..., c].ravel(), len(seeds)) / counts for c in range(3)], -1)
    edges = (cells != np.roll(cells, 1, 0)) | (cells != np.roll(cells, 1, 1))
    return np.where(edges[..., None], means[cells] * 0.35, means[cells])


def _tonalism(picture: Image.Image, hand: Hand, rng: np.random.Generator) -> np.ndarray:
    soft = np.asarray(picture.filter(ImageFilter.GaussianBlur(0.03 * picture.width))).astype(float)
    return soft * 0.8 + 0.2 * soft.mean((0, 1))


def _byzantine(picture: Image.Image, hand: Hand, rng: np.random.Generator) -> np.ndarray:
    tile = max(4, picture.width // 16)
    size = picture.width
    small = picture.resize((size // tile, size // tile), Image.Resampling.BOX)
    pixels = np.asarray(small).astype(float)
    pixels = np.kron(pixels + rng.normal(0, 14, (*pixels.shape[:2], 1)), np.ones((tile, tile, 1)))
    pixels = np.pad(pixels, ((0, size - len(pixels)), (0, size - len(pixels)), (0, 0)), mode="edge")
    pixels[::tile] = pixels[:, ::tile] = 60
    return pixels


def _ligne_claire(picture: Image.Image, hand: Hand, rng: np.random.Generator) -> np.ndarray:
    edges = np.asarray(picture.convert("L").filter(ImageFilter.FIND_EDGES).filter(ImageFilter.MaxFilter(3)))
    flat = 0.65 * np.asarray(picture).astype(float) + 0.35 * 255
    return np.where(edges[..., None] > 30, 15.0, flat)


STYLES: dict[str, Callable[[Image.Image, Hand, np.random.Generator], np.ndarray]] = {
    "byzantine": _byzantine,
    "cubism": _cubism,
    "etching": _etching,
    "impressionism": _impressionism,
    "ligne claire": _ligne_claire,
    "pointillism": _pointillism,
    "tonalism": _tonalism,
}


# ---- media: the pigment, and the ground with its bare rim ----


def _oil(pixels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    grey = pixels.mean(-1, keepdims=True)
    return grey + 1.25 * (pixels - grey)


def _watercolor(pixels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    blots = np.asarray(Image.fromarray(rng.integers(0, 256, (6, 6), dtype=np.uint8)).resize(pixels.shape[1::-1]))
    return 0.55 * pixels + 0.45 * 255 + (blots[..., None] - 128.0) * 0.12


def _ink(pixels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    grey = pixels.mean(-1, keepdims=True)
    return 128 + 1.3 * (0.55 * grey + 0.45 * pixels - 150)


PIGMENTS = {"ink": _ink, "oil": _oil, "watercolor": _watercolor}


def _with_rim(pixels: np.ndarray, grain: np.ndarray, colour: Colour) -> np.ndarray:
    rim = max(2, len(pixels) // 16)
    ground = np.array(colour, dtype=float) + grain[..., None]
    ground[rim:-rim, rim:-rim] = (pixels + 0.8 * grain[..., None])[rim:-rim, rim:-rim]
    return ground


def _canvas(pixels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    y, x = np.mgrid[: len(pixels), : len(pixels)]
    return _with_rim(pixels, 14.0 * (np.sin(x * 1.6) * np.sin(y * 1.6)), (214, 196, 160))


def _paper(pixels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    return _with_rim(pixels, rng.normal(0, 5, pixels.shape[:2]), (250, 250, 246))


def _panel(pixels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    y, x = np.mgrid[: len(pixels), : len(pixels)]
    return _with_rim(pixels, 14.0 * np.sin(y * 0.9 + 1.5 * np.sin(x * 0.06 + rng.uniform(0, 6))), (120, 78, 42))


GROUNDS = {"canvas": _canvas, "panel": _panel, "paper": _paper}
