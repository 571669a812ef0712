"""Pages made to look as if they came from a scanner, to see what is left of a ranking."""

import io
import random

import numpy as np
from PIL import Image

DEGRADATIONS = ("none", "scan")
ROTATION = 1.0
"""Degrees, to either side: a page fed a little askew."""
NOISE = 12.0
"""Standard deviation of the grey noise, in levels of 255."""
JPEG_QUALITY = 35


def degrade(image: Image.Image, degradation: str, seed: str) -> Image.Image:
    """Return an RGB page as it is ("none"), or rotated, with noise and through JPEG ("scan"); `seed` decides the noise.

    Raises:
        ValueError: for another name.
    """
    if degradation == "none":
        return image
    if degradation != "scan":
        raise ValueError(f"No degradation {degradation!r}. Choose one of {', '.join(DEGRADATIONS)}.")
    draw = random.Random(seed)
    angle = ROTATION * draw.choice((-1, 1))
    turned = image.rotate(angle, Image.Resampling.BICUBIC, fillcolor=(255, 255, 255))
    noise = np.random.default_rng(draw.getrandbits(64)).normal(0, NOISE, (turned.height, turned.width, 1))
    noisy = Image.fromarray((np.asarray(turned, np.float32) + noise).clip(0, 255).astype(np.uint8))
    buffer = io.BytesIO()
    noisy.save(buffer, "JPEG", quality=JPEG_QUALITY)
    with Image.open(buffer) as scanned:
        return scanned.convert("RGB")
