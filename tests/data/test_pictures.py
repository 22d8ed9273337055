"""Pictures of every kind are read as a viewer shows them; those that cannot be read are skipped or stop the run."""

import io
import json
import struct
import zlib

import numpy as np
import pytest
from datasets import Dataset, Features, Value
from datasets import Image as ImageFeature
from PIL import Image

from artgraph_vit.data import DataError, find_bad_pictures, leave_out, read_picture
from artgraph_vit.data.pictures import BadPictureError


def encoded(picture: Image.Image, format: str, **options) -> dict:
    buffer = io.BytesIO()
    picture.save(buffer, format, **options)
    return {"bytes": buffer.getvalue(), "path": f"picture.{format.lower()}"}


def pixels(image: dict) -> np.ndarray:
    picture = read_picture(image)
    assert picture.mode == "RGB"
    return np.asarray(picture).astype(int)


def assert_colour(pixel, colour, tolerance: int = 0) -> None:
    assert np.abs(np.asarray(pixel) - colour).max() <= tolerance, (pixel, colour)


def test_greyscale_becomes_three_equal_channels():
    values = np.arange(256, dtype=np.uint8).reshape(16, 16)
    assert (pixels(encoded(Image.fromarray(values), "PNG")) == values[..., None]).all()


def test_a_cmyk_jpeg_has_the_colours_it_was_printed_in():
    picture = Image.new("CMYK", (16, 8), (0, 255, 255, 0))  # no cyan, all magenta and yellow: red
    picture.paste((255, 0, 0, 0), (8, 0, 16, 8))  # cyan
    read = pixels(encoded(picture, "JPEG", quality=95))
    assert_colour(read[4, 2], (255, 0, 0), tolerance=6)
    assert_colour(read[4, 13], (0, 255, 255), tolerance=6)


@pytest.mark.parametrize("transparency", [0, bytes([0, 255, 255])])
def test_a_transparent_palette_entry_is_white(transparency):
    picture = Image.new("P", (3, 1))
    picture.putpalette([255, 0, 0, 0, 255, 0, 0, 0, 255])
    picture.putdata([0, 1, 2])
    read = pixels(encoded(picture, "PNG", transparency=transparency))
    assert read.tolist() == [[[255, 255, 255], [0, 255, 0], [0, 0, 255]]]


def test_half_transparent_pixels_are_laid_on_white():
    picture = Image.new("RGBA", (2, 1), (255, 0, 0, 128))
    picture.putpixel((1, 0), (10, 20, 30, 255))
    read = pixels(encoded(picture, "PNG"))
    assert_colour(read[0, 0], (255, 127, 127), tolerance=1)
    assert_colour(read[0, 1], (10, 20, 30))


def test_greyscale_with_transparency_is_laid_on_white():
    read = pixels(encoded(Image.new("LA", (1, 1), (0, 0)), "PNG"))
    assert_colour(read[0, 0], (255, 255, 255))


def test_sixteen_bits_are_scaled_not_clipped():
    values = np.array([[0, 257 * 1, 257 * 100, 65535]], dtype=np.uint16)
    read = pixels(encoded(Image.fromarray(values), "PNG"))
    assert_colour(read[0, :, 0], [0, 1, 100, 255])
    assert (read[..., 0] == read[..., 2]).all()


def test_a_dark_picture_of_sixteen_bits_stays_dark():
    values = np.full((4, 4), 200, dtype=np.uint16)  # 0.3 % of full brightness
    assert pixels(encoded(Image.fromarray(values), "PNG")).max() <= 1


def test_a_bilevel_picture_is_black_and_white():
    picture = Image.new("1", (2, 1), 1)
    picture.putpixel((0, 0), 0)
    assert pixels(encoded(picture, "PNG")).tolist() == [[[0, 0, 0], [255, 255, 255]]]


def test_of_an_animation_the_first_frame_is_read():
    frames = [Image.new("RGB", (4, 4), colour) for colour in ("red", "lime", "blue")]
    read = pixels(encoded(frames[0], "GIF", save_all=True, append_images=frames[1:]))
    assert (read == [255, 0, 0]).all()


@pytest.mark.parametrize(
    ("orientation", "size", "top_left", "bottom_right"),
    [
        (1, (40, 20), "red", "blue"),
        (3, (40, 20), "blue", "red"),
        (6, (20, 40), "red", "blue"),
        (8, (20, 40), "blue", "red"),
    ],
)
def test_a_picture_taken_with_a_turned_camera_is_turned_upright(orientation, size, top_left, bottom_right):
    picture = Image.new("RGB", (40, 20), "red")
    picture.paste("blue", (20, 0, 40, 20))
    exif = Image.Exif()
    exif[0x0112] = orientation  # 6: the camera's left is the top
    image = encoded(picture, "JPEG", quality=95, exif=exif)
    assert read_picture(image).size == size
    colours = {"red": (255, 0, 0), "blue": (0, 0, 255)}
    read = pixels(image)
    assert_colour(read[2, 2], colours[top_left], tolerance=8)
    assert_colour(read[-3, -3], colours[bottom_right], tolerance=8)


def test_a_picture_is_read_from_its_path(tmp_path):
    Image.new("RGB", (3, 2), (1, 2, 3)).save(tmp_path / "a.png")
    assert (pixels({"path": str(tmp_path / "a.png"), "bytes": None}) == [1, 2, 3]).all()


def noise(size: int = 64) -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (size, size, 3), dtype=np.uint8))


def bomb() -> dict:
    """The first bytes of a PNG that says it has 400 million pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 20_000, 20_000, 1, 0, 0, 0, 0))
    data = chunk(b"IDAT", zlib.compress(bytes(2501) * 20))
    return {"bytes": b"\x89PNG\r\n\x1a\n" + header + data + chunk(b"IEND", b""), "path": "bomb.png"}


@pytest.fixture
def bad_pictures(tmp_path) -> dict[str, dict]:
    truncated = encoded(noise(), "JPEG")
    truncated["bytes"] = truncated["bytes"][: len(truncated["bytes"]) // 2]
    (tmp_path / "empty.jpg").touch()
    (tmp_path / "text.jpg").write_text("This is no picture.")
    return {
        "truncated": {**truncated, "path": "truncated.jpg"},
        "text": {"bytes": None, "path": str(tmp_path / "text.jpg")},
        "empty": {"bytes": None, "path": str(tmp_path / "empty.jpg")},
        "missing": {"bytes": None, "path": str(tmp_path / "missing.jpg")},
        "bomb": bomb(),
    }


def rows_of(pictures: dict[str, dict]) -> Dataset:
    features = Features({"image": ImageFeature(decode=False), "name": Value("string")})
    return Dataset.from_dict({"image": list(pictures.values()), "name": list(pictures)}, features=features)


@pytest.mark.parametrize("name", ["truncated", "text", "empty", "missing", "bomb"])
def test_what_cannot_be_decoded_is_refused_by_name(bad_pictures, name):
    image = bad_pictures[name]
    with pytest.raises(BadPictureError, match=f"{name}."):
        read_picture(image)


def test_the_bomb_is_refused_for_its_size(bad_pictures):
    with pytest.raises(BadPictureError, match="400000000 pixels"):
        read_picture(bad_pictures["bomb"])


def test_empty_embedded_bytes_are_a_bad_picture():
    with pytest.raises(BadPictureError):
        read_picture({"bytes": b"", "path": None})


@pytest.fixture
def mixed_rows(bad_pictures) -> Dataset:
    good = encoded(noise(8), "PNG")
    pictures = {"good 0": good}
    for index, (name, image) in enumerate(bad_pictures.items(), start=1):
        pictures |= {name: image, f"good {index}": good}
    return rows_of(pictures)


def test_bad_pictures_are_found_at_their_rows(mixed_rows, bad_pictures):
    bad = find_bad_pictures(mixed_rows, progress=False)
    assert [mixed_rows[index]["name"] for index in bad] == list(bad_pictures)
    assert all(reason for reason in bad.values())


def test_several_processes_find_the_same_bad_pictures():
    good, bad = encoded(noise(4), "PNG"), {"bytes": b"text", "path": "bad.png"}
    rows = rows_of({str(index): bad if index in (0, 63, 64, 517) else good for index in range(518)})
    assert set(find_bad_pictures(rows, num_processes=2, progress=False)) == {0, 63, 64, 517}


def test_skip_leaves_bad_pictures_out_and_lists_them(mixed_rows, bad_pictures, tmp_path):
    bad = find_bad_pictures(mixed_rows, progress=False)
    rows = leave_out(mixed_rows, bad, "skip", tmp_path / "reports" / "bad.json")
    assert rows["name"][:] == [f"good {index}" for index in range(6)]
    report = json.loads((tmp_path / "reports" / "bad.json").read_text())
    assert report["count"] == 5
    assert [entry["name"] for entry in report["pictures"]] == list(bad_pictures)


def test_stop_ends_the_run_with_one_sentence_and_still_lists_them(mixed_rows, tmp_path):
    bad = find_bad_pictures(mixed_rows, progress=False)
    with pytest.raises(DataError, match=r"5 of 11 pictures cannot be read, the first is 'truncated'.*=skip"):
        leave_out(mixed_rows, bad, "stop", tmp_path / "bad.json")
    assert json.loads((tmp_path / "bad.json").read_text())["count"] == 5


@pytest.mark.parametrize("on_bad_image", ["skip", "stop"])
def test_without_a_bad_picture_all_rows_stay(on_bad_image, tmp_path):
    rows = rows_of({"a": encoded(noise(4), "PNG"), "b": encoded(noise(4), "GIF")})
    kept = leave_out(rows, find_bad_pictures(rows, progress=False), on_bad_image, tmp_path / "bad.json")
    assert kept["name"][:] == ["a", "b"]
    assert not (tmp_path / "bad.json").exists()
