"""Made pictures: whole ones, and those that cannot be read."""

import io
import struct
import zlib
from pathlib import Path

import numpy as np
from PIL import Image


def encoded(picture: Image.Image, format: str, **options) -> dict:
    buffer = io.BytesIO()
    picture.save(buffer, format, **options)
    return {"bytes": buffer.getvalue(), "path": f"picture.{format.lower()}"}


def noise(size: int = 64) -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (size, size, 3), dtype=np.uint8))


def png(width: int, height: int, *chunks: tuple[bytes, bytes]) -> bytes:
    """A black-and-white PNG that says it has this size, and has 20 of its rows."""
    header = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    data = zlib.compress(bytes((width + 7) // 8 + 1) * 20)
    chunks = ((b"IHDR", header), *chunks, (b"IDAT", data), (b"IEND", b""))
    parts = [struct.pack(">I", len(d)) + kind + d + struct.pack(">I", zlib.crc32(kind + d)) for kind, d in chunks]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def bad_pictures_in(folder: Path) -> dict[str, dict]:
    """Undecoded pictures by what is wrong with them; those in files are written into the folder."""
    truncated = encoded(noise(), "JPEG")
    truncated["bytes"] = truncated["bytes"][: len(truncated["bytes"]) // 2]
    (folder / "empty.jpg").touch()
    (folder / "folder.jpg").mkdir()
    (folder / "text.jpg").write_text("This is no picture.")
    return {
        "truncated": {**truncated, "path": "truncated.jpg"},
        "text": {"bytes": None, "path": str(folder / "text.jpg")},
        "empty": {"bytes": None, "path": str(folder / "empty.jpg")},
        "missing": {"bytes": None, "path": str(folder / "missing.jpg")},
        "folder": {"bytes": None, "path": str(folder / "folder.jpg")},
        "bomb": {"bytes": png(20_000, 20_000), "path": "bomb.png"},
    }
