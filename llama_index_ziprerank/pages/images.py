"""Pictures made uniform: any image file becomes 8-bit RGB, and this is the one place that resizes."""

import struct
from functools import lru_cache
from io import BytesIO
from pathlib import Path
from warnings import warn

import numpy as np
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError
from PIL.TiffImagePlugin import TiffImageFile

from llama_index_ziprerank.pages.page import PageError, PageWarning

MOST_ELONGATED = 100
"""Times that the longer side may be as long as the shorter; Qwen-VL's image processor refuses 200."""

_FORMATS = ("AVIF", "BMP", "GIF", "JPEG", "JPEG2000", "PNG", "PPM", "TIFF", "WEBP")
"""What pages come in. Pillow knows others, and opens one of them (EPS) by running another program."""

_DAMAGED = (OSError, SyntaxError, ValueError, LookupError, TypeError, ArithmeticError, EOFError, struct.error)
"""What Pillow raises for damaged files, all of them seen or read in its sources."""

_WHITE = (255, 255, 255)
_PNG_COMPRESSION = 3  # half the time of the default 6, and on page images no larger


def open_image(source: bytes | Path) -> Image.Image:
    """Decode an image file, from its bytes or its path, to RGB; of an animation, the first frame.

    Of a TIFF file of several pages it is the first too, with a PageWarning.

    Raises:
        PageError: the file is missing, is no image of `_FORMATS`, is cut off, is more than `MOST_ELONGATED` times as
            long as wide, or has more pixels than Pillow allows (twice ``PIL.Image.MAX_IMAGE_PIXELS``).
    """
    name = f"{len(source)} bytes" if isinstance(source, bytes) else str(source)
    if isinstance(source, Path):
        _check_file(source)
    try:
        with Image.open(BytesIO(source) if isinstance(source, bytes) else source, formats=_formats()) as image:
            _check_shape(image, name)
            image.load()
            _warn_of_more_pages(image, name)
            return to_rgb(image).copy()  # free of the file, which several threads must not ask for the rest
    except PageError:
        raise
    except UnidentifiedImageError as error:
        raise PageError(
            f"{name}: not an image of a kind that is read ({', '.join(_formats())}). Convert it to PNG or JPEG."
        ) from error
    except Image.DecompressionBombError as error:
        raise PageError(f"{name}: {error} Shrink the image, or raise PIL.Image.MAX_IMAGE_PIXELS.") from error
    except MemoryError as error:
        raise PageError(f"{name}: the image does not fit the memory. Shrink it.") from error
    except _DAMAGED as error:
        raise PageError(f"{name}: the image cannot be read ({error}).") from error


def read_image_file(path: Path) -> bytes:
    """Return the bytes of an image file, not decoded.

    Raises:
        PageError: `path` is a folder, a pipe or a device, which may never end.
        OSError: the file is missing, or cannot be read.
    """
    _check_file(path)
    return path.read_bytes()


def _check_file(path: Path) -> None:
    """Check that what is there is a file; one that is missing is for the reading to tell."""
    if path.exists() and not path.is_file():
        raise PageError(f"{path}: a folder, a pipe or a device. Pass the path of an image file.")


@lru_cache
def _formats() -> tuple[str, ...]:
    """Return those of `_FORMATS` that the installed Pillow knows."""
    Image.init()
    return tuple(name for name in _FORMATS if name in Image.OPEN)


def _warn_of_more_pages(image: Image.Image, name: str) -> None:
    if isinstance(image, TiffImageFile) and image.tag_v2.next:
        warn(
            f"{name}: of this TIFF file the first page alone is read. Save each page as a file of its own, or all of "
            "them as a PDF.",
            PageWarning,
            stacklevel=3,
        )


def _check_shape(image: Image.Image, name: str) -> None:
    if max(image.size) > MOST_ELONGATED * min(image.size):
        raise PageError(
            f"{name}: {image.width} by {image.height} pixels; the longer side may be {MOST_ELONGATED} times the "
            "shorter. Cut the image into pages."
        )


def encode_png(image: Image.Image) -> bytes:
    """Return `image` as a PNG file."""
    buffer = BytesIO()
    image.save(buffer, format="PNG", compress_level=_PNG_COMPRESSION)
    return buffer.getvalue()


def to_rgb(image: Image.Image) -> Image.Image:
    """Return `image` as upright 8-bit RGB; the same object when it already is.

    The EXIF orientation is applied where it can be read, transparency is laid over white, 16-bit grey keeps its upper
    8 bits, and floating-point grey is stretched from its own minimum and maximum.
    """
    if _orientation(image) != 1:
        image = ImageOps.exif_transpose(image)
    if image.mode == "RGB" and not image.has_transparency_data:
        return image
    if image.mode.startswith("I"):
        levels = np.asarray(image).clip(0, 65535)
        transparent = levels == image.info.get("transparency")  # none where the file names no such level
        return _grey_to_rgb(np.where(transparent, 65535, levels) // 257)
    if image.mode == "F":
        values = np.nan_to_num(np.asarray(image))
        spread = float(values.max() - values.min()) or 1.0
        return _grey_to_rgb((values - values.min()) / spread * 255)
    if not image.has_transparency_data:
        return image.convert("RGB")
    alpha = image.convert("RGBA")
    canvas = Image.new("RGB", alpha.size, _WHITE)
    canvas.paste(alpha, mask=alpha.getchannel("A"))
    return canvas


def _orientation(image: Image.Image) -> int:
    try:
        return int(image.getexif().get(ExifTags.Base.Orientation, 1))
    except _DAMAGED:  # damage beside the picture, which viewers show
        return 1


def fit_within(image: Image.Image, side: int) -> Image.Image:
    """Shrink `image` until its longer side is at most `side` pixels (Lanczos); never enlarge it.

    Both sides become ``int(length * scale)`` with ``scale = side / longer``, as in the released checkpoint's training.
    """
    longer = max(image.size)
    if longer <= side:
        return image
    scale = side / longer
    width, height = (max(1, int(length * scale)) for length in image.size)
    return image.resize((width, height), Image.Resampling.LANCZOS)


def _grey_to_rgb(values: np.ndarray) -> Image.Image:
    return Image.fromarray(values.astype(np.uint8)).convert("RGB")
