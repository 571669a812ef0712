"""What a page's features depend on, as names: the page by what it shows, the checkpoint by its vision tower."""

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from io import BytesIO

import torch
from PIL import Image
from transformers import Qwen3VLForConditionalGeneration, Qwen3VLProcessor

from llama_index_ziprerank.pages.images import fit_within, open_image, to_rgb
from llama_index_ziprerank.reranking.inputs import own_side, pixel_bounds
from llama_index_ziprerank.reranking.stored_features import FeatureShape

_VOLATILE = {"_name_or_path", "architectures", "dtype", "torch_dtype", "transformers_version", "_attn_implementation"}
"""What a configuration says about its file rather than about the features."""


@dataclass(frozen=True, eq=False)
class PageFile:
    """A page as the bytes of its image file, decoded only when its features are not known yet."""

    content: bytes
    open: Callable[[bytes], Image.Image] = open_image
    """Decodes ``content``; its errors are the caller's to choose."""

    def image(self) -> Image.Image:
        """Decode the file."""
        return self.open(self.content)


PageSource = Image.Image | PageFile


@dataclass(frozen=True)
class CheckpointKey:
    """Under which name a checkpoint's features are kept, and what they look like."""

    fingerprint: str
    shape: FeatureShape
    dtype: torch.dtype
    device: torch.device
    side: int


def checkpoint_key(
    model: Qwen3VLForConditionalGeneration,
    processor: Qwen3VLProcessor,
    *,
    skip_blank: bool = False,
    side: int | None = None,
) -> CheckpointKey:
    """Identify all that a page's features depend on: weights and configuration of the tower, resize, normalisation.

    The pages' longest side is the checkpoint's own (`own_side`) by default.

    Reads every weight of the tower once (SHA-256, about 1 s a gigabyte). The language model does not matter.
    """
    vision = model.config.vision_config
    side = own_side(processor) if side is None else side
    settings = {
        "vision": {key: value for key, value in vision.to_dict().items() if key not in _VOLATILE},
        "image": processor.image_processor.to_dict(),
        "max_side": side,
        "skip_blank": skip_blank,
    }
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True, default=str).encode())
    for name, weight in sorted(model.model.visual.state_dict().items()):
        digest.update(f"{name} {tuple(weight.shape)} {weight.dtype}".encode())
        digest.update(weight.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    shape = FeatureShape(vision.out_hidden_size, len(vision.deepstack_visual_indexes), vision.spatial_merge_size)
    return CheckpointKey(digest.hexdigest()[:32], shape, model.dtype, model.device, side)


def page_digest(page: PageSource) -> str:
    """Identify what a page shows: SHA-256 of its file or, of a decoded image, of its size and pixels.

    A file takes 0.15 ms, the pixels of an A4 page at 1,600 pixels 4 ms; the tower takes hundreds.
    """
    if isinstance(page, PageFile):
        return hashlib.sha256(b"file" + page.content).hexdigest()
    image = to_rgb(page)
    return hashlib.sha256(f"{image.mode} {image.size}".encode() + image.tobytes()).hexdigest()


def visual_tokens(processor: Qwen3VLProcessor, size: tuple[int, int], side: int) -> int:
    """Count the visual tokens of a page of this width and height; ValueError where the model cannot read it."""
    width, height = fit_within(Image.new("1", size), side).size  # the fewest bytes a pixel
    images = processor.image_processor
    bounds = pixel_bounds(processor, side)
    limits = {"min_pixels": bounds["shortest_edge"], "max_pixels": bounds["longest_edge"]}
    return images.get_number_of_image_patches(height, width, limits) // images.merge_size**2


def page_size(page: PageSource) -> tuple[int, int]:
    """Return width and height of a page without decoding it; what is wrong with its file is said as in decoding."""
    if isinstance(page, Image.Image):
        return page.size
    try:
        with Image.open(BytesIO(page.content)) as image:
            return image.size
    except (OSError, Image.DecompressionBombError):
        return page.image().size  # whose error says which page it is
