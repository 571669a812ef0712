"""The law of hostile images: each gives an upright RGB picture or one clear error, whatever its kind and its damage."""

import os
import struct
import warnings
import zlib
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest
from mutations import bit_flips, doubled_piece, garbage, missing_piece, truncation
from PIL import Image, features

from llama_index_ziprerank.pages.images import fit_within, open_image
from llama_index_ziprerank.pages.page import PageError

NOISE = Image.effect_noise((48, 32), 90).convert("RGB")


def as_file(image: Image.Image, kind: str, **choices: Any) -> bytes:
    buffer = BytesIO()
    image.save(buffer, kind, **choices)
    return buffer.getvalue()


def _oriented(kind: str) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = 6  # orientation: turn by 90 degrees
    return as_file(NOISE, kind, exif=exif)


FRAMES = [NOISE, NOISE.rotate(90), NOISE.rotate(180)]
READABLE: dict[str, Callable[[], bytes]] = {
    "PNG": lambda: as_file(NOISE, "PNG"),
    "JPEG": lambda: as_file(NOISE, "JPEG"),
    "JPEG, CMYK": lambda: as_file(NOISE.convert("CMYK"), "JPEG"),
    "JPEG, turned by EXIF": lambda: _oriented("JPEG"),
    "JPEG 2000": lambda: as_file(NOISE, "JPEG2000"),
    "TIFF": lambda: as_file(NOISE, "TIFF"),
    "TIFF, CMYK, LZW": lambda: as_file(NOISE.convert("CMYK"), "TIFF", compression="tiff_lzw"),
    "TIFF, floating point": lambda: as_file(NOISE.convert("F"), "TIFF"),
    "PNG, 16 bit": lambda: as_file(Image.fromarray(np.full((32, 48), 40_000, np.uint16)), "PNG"),
    "PNG, palette and transparency": lambda: as_file(NOISE.convert("P"), "PNG", transparency=3),
    "PNG, alpha": lambda: as_file(NOISE.convert("RGBA"), "PNG"),
    "PNG, one bit": lambda: as_file(NOISE.convert("1"), "PNG"),
    "PNG, animated": lambda: as_file(NOISE, "PNG", save_all=True, append_images=FRAMES),
    "GIF": lambda: as_file(NOISE, "GIF"),
    "GIF, animated": lambda: as_file(NOISE, "GIF", save_all=True, append_images=FRAMES),
    "WebP": lambda: as_file(NOISE, "WEBP"),
    "BMP": lambda: as_file(NOISE, "BMP"),
    "PPM": lambda: as_file(NOISE, "PPM"),
}


@pytest.mark.parametrize("kind", list(READABLE), ids=str)
def test_every_usual_kind_of_image_is_read(kind: str) -> None:
    image = open_image(READABLE[kind]())
    assert (image.mode, image.size) == ("RGB", (32, 48) if "turned" in kind else (48, 32))


@pytest.mark.parametrize("kind", ["PNG, animated", "GIF, animated"])
def test_of_an_animation_the_first_frame_is_read(kind: str) -> None:
    still = as_file(NOISE, kind[:3])
    assert open_image(READABLE[kind]()).tobytes() == open_image(still).tobytes()


def _read(content: bytes) -> str:
    """Read an image that may be damaged: "image" or "error", and nothing else."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow's remarks about the damage
        try:
            image = open_image(content)
        except PageError as error:
            assert str(len(content)) in str(error) and len(str(error)) < 1000
            return "error"
    assert image.mode == "RGB"
    return "image"


def _damaged(count: int) -> set[str]:
    kinds = [truncation, bit_flips, garbage, missing_piece, doubled_piece]
    results = set()
    for name, make in READABLE.items():
        content = make()
        for number in range(count):
            random = Random(f"{name}-{number}")
            results.add(_read(kinds[number % len(kinds)](content, random)))
    return results


def test_damaged_images_give_a_picture_or_one_clear_error() -> None:
    assert _damaged(20) == {"image", "error"}


@pytest.mark.slow
def test_ten_thousand_damaged_images_give_a_picture_or_one_clear_error() -> None:
    assert _damaged(10_000 // len(READABLE)) == {"image", "error"}


@pytest.mark.parametrize("kind", list(READABLE), ids=str)
def test_every_kind_cut_to_half_gives_a_picture_or_one_clear_error(kind: str) -> None:
    content = READABLE[kind]()
    _read(content[: len(content) // 2])


def test_an_image_of_one_pixel_is_read() -> None:
    assert open_image(as_file(Image.new("RGB", (1, 1), "red"), "PNG")).getpixel((0, 0)) == (255, 0, 0)


@pytest.mark.parametrize("size", [(1, 20_000), (20_000, 1), (101, 1)])
def test_a_thread_of_an_image_is_refused_by_its_shape(size: tuple[int, int]) -> None:
    with pytest.raises(PageError, match=rf"{size[0]} by {size[1]} pixels; .* 100 times the shorter"):
        open_image(as_file(Image.new("RGB", size), "PNG"))


@pytest.mark.parametrize("size", [(1, 100), (20_000, 200), (20_010, 201)])
def test_the_longest_shape_that_is_read_stays_below_what_the_models_refuse(size: tuple[int, int]) -> None:
    fitted = fit_within(open_image(as_file(Image.new("RGB", size), "PNG")), 1024)
    assert max(fitted.size) < 200 * min(fitted.size)


def _claiming(width: int, height: int) -> bytes:
    """A PNG of 70 bytes that says it is so large."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(b"\0" * 9)) + chunk(b"IEND", b"")


def test_more_pixels_than_allowed_are_refused_and_the_limit_is_named() -> None:
    with pytest.raises(PageError, match=r"900000000 pixels.*limit of 178956970.*MAX_IMAGE_PIXELS"):
        open_image(_claiming(30_000, 30_000))


@pytest.mark.parametrize(
    "content",
    [
        b'<svg xmlns="http://www.w3.org/2000/svg"><script>alert(1)</script></svg>',
        b'<?xml version="1.0"?><!DOCTYPE svg [<!ENTITY x SYSTEM "file:///etc/passwd">]><svg>&x;</svg>',
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n(%pipe%id) (w) file\n",
        b"%PDF-1.7\n",
    ],
    ids=["SVG", "SVG with an entity", "EPS", "PDF"],
)
def test_what_would_have_to_be_run_to_be_seen_is_refused(content: bytes) -> None:
    with pytest.raises(PageError, match="not an image of a kind that is read .*Convert it to PNG or JPEG"):
        open_image(content)


def test_a_pipe_in_the_place_of_an_image_is_refused_and_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "page.png")
    with pytest.raises(PageError, match="a folder, a pipe or a device"):
        open_image(tmp_path / "page.png")


@pytest.mark.skipif(not features.check("avif"), reason="this Pillow reads no AVIF")
def test_avif_is_read() -> None:
    assert open_image(as_file(NOISE, "AVIF")).size == (48, 32)
