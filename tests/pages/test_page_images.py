"""The laws of `pages/images.py`: any image becomes 8-bit RGB, and shrinking follows the checkpoint's arithmetic."""

from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from llama_index_ziprerank.pages.images import encode_png, fit_within, open_image, to_rgb
from llama_index_ziprerank.pages.page import PageError, PageId, PageWarning


def as_file(image: Image.Image, kind: str = "PNG", **choices: Any) -> bytes:
    buffer = BytesIO()
    image.save(buffer, kind, **choices)
    return buffer.getvalue()


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBa", "CMYK", "YCbCr", "LAB", "HSV"])
def test_every_mode_becomes_rgb_of_the_same_size(mode: str) -> None:
    image = to_rgb(Image.new(mode, (5, 3)))
    assert (image.mode, image.size) == ("RGB", (5, 3))


def test_rgb_stays_the_same_object() -> None:
    image = Image.new("RGB", (2, 2))
    assert to_rgb(image) is image


def test_sixteen_bit_grey_keeps_its_brightness() -> None:
    grey = Image.fromarray(np.array([[0, 32768, 65535]], dtype=np.uint16))
    assert [pixel[0] for pixel in np.asarray(to_rgb(grey))[0]] == [0, 127, 255]
    assert open_image(as_file(grey)).tobytes() == to_rgb(grey).tobytes()


def test_floating_point_grey_fills_the_range() -> None:
    grey = Image.fromarray(np.array([[-1.0, 0.0, 1.0, np.nan]], dtype=np.float32))
    assert [pixel[0] for pixel in np.asarray(to_rgb(grey))[0]] == [0, 127, 255, 127]
    assert to_rgb(Image.new("F", (1, 1), 7.0)).getpixel((0, 0)) == (0, 0, 0)


def test_transparency_shows_white_paper() -> None:
    half_red = Image.new("RGBA", (1, 1), (255, 0, 0, 128))
    assert to_rgb(half_red).getpixel((0, 0)) == (255, 127, 127)
    assert to_rgb(Image.new("LA", (1, 1), (0, 0))).getpixel((0, 0)) == (255, 255, 255)
    palette = Image.new("P", (1, 1))
    palette.info["transparency"] = 0
    assert to_rgb(palette).getpixel((0, 0)) == (255, 255, 255)
    grey = as_file(Image.fromarray(np.array([[0, 300, 65535]], dtype=np.uint16)), transparency=0)
    assert [pixel[0] for pixel in np.asarray(open_image(grey))[0]] == [255, 1, 255]


def test_cmyk_ink_is_dark() -> None:
    assert to_rgb(Image.new("CMYK", (1, 1), (0, 0, 0, 255))).getpixel((0, 0)) == (0, 0, 0)


def test_a_photo_taken_sideways_stands_upright() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # orientation: turn by 90 degrees
    sideways = as_file(Image.new("RGB", (40, 20)), "JPEG", exif=exif)
    assert open_image(sideways).size == (20, 40)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_damaged_exif_beside_a_whole_picture_is_no_damage(kind: str) -> None:
    image = open_image(as_file(Image.new("RGB", (40, 20)), kind, exif=b"no TIFF at all"))
    assert image.size == (40, 20)
    assert open_image(encode_png(image)).tobytes() == image.tobytes()


def test_pages_of_a_tiff_file_behind_the_first_are_warned_of(tmp_path: Path) -> None:
    first, second = Image.new("RGB", (40, 20), "red"), Image.new("RGB", (40, 20), "blue")
    (tmp_path / "fax.tif").write_bytes(as_file(first, "TIFF", save_all=True, append_images=[second]))
    with pytest.warns(PageWarning, match=r"fax\.tif: of this TIFF file the first page alone is read"):
        assert open_image(tmp_path / "fax.tif").tobytes() == first.tobytes()


def test_png_round_trip_changes_nothing() -> None:
    image = Image.effect_noise((30, 20), 80).convert("RGB")
    assert open_image(encode_png(image)).tobytes() == image.tobytes()


@pytest.mark.parametrize(
    "content", [b"", b"no image", b"P6 6x 64 255 ", as_file(Image.effect_noise((64, 64), 90))[:500]]
)
def test_what_is_no_whole_image_is_refused(content: bytes, tmp_path: Path) -> None:
    file = tmp_path / "page.png"
    file.write_bytes(content)
    with pytest.raises(PageError, match=rf"{len(content)} bytes: "):
        open_image(content)
    with pytest.raises(PageError, match=r"page\.png: "):
        open_image(file)


def test_a_missing_image_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(PageError, match=r"gone\.png: .*No such file"):
        open_image(tmp_path / "gone.png")


def test_more_pixels_than_pillow_allows_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(PageError, match="MAX_IMAGE_PIXELS"):
        open_image(as_file(Image.new("RGB", (30, 30))))


@given(st.integers(1, 400), st.integers(1, 400), st.integers(1, 200))
def test_shrinking_follows_the_checkpoints_arithmetic(width: int, height: int, side: int) -> None:
    image = Image.new("RGB", (width, height))
    fitted = fit_within(image, side)
    if max(width, height) <= side:
        assert fitted is image
    else:
        scale = side / max(width, height)
        assert fitted.size == (max(1, int(width * scale)), max(1, int(height * scale)))


def test_a_page_id_sorts_and_reads_as_document_and_number() -> None:
    assert str(PageId("00ff", 7)) == "00ff-00007"
