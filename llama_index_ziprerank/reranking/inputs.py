"""Words and page images become the model's inputs. Training and inference both start here, so they cannot differ.

The only caller of the prompt, of the resize and of the chat template. Letters: N pages, L prompt tokens, P visual
tokens of a page; the vision tower reads ``merge**2 * P`` patches of it (``merge`` = 2) and merges them into P.
"""

import re
import threading
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jinja2 import TemplateError
from PIL import Image
from transformers import PreTrainedTokenizerBase, Qwen3VLProcessor

from llama_index_ziprerank.pages.images import fit_within, to_rgb
from llama_index_ziprerank.pages.questions import readable_question
from llama_index_ziprerank.reranking.permutation import check_window_length, identifier_token_ids, single_token_id
from llama_index_ziprerank.reranking.prompt import check_query, prompt_words

MAX_SIDE = 1024
"""Longest side of a page in pixels, as the paper's checkpoint was trained and measured; another may say its own."""

LEAST_SIDE, MOST_SIDE = 256, 4096
"""Bounds of other sides: below nothing can be read, above a page has more tokens than models are made for."""

_CHANNELS = 3

ANSWER_OPENING = "["
"""The prompt ends with this one token, so the next token is a bare letter (as text, Qwen merges ``[A`` into one)."""

Grid = tuple[int, int, int]
"""Patches of a page along time (1), height and width: transformers' ``image_grid_thw``."""


@dataclass(frozen=True, eq=False)
class PagePatches:
    """One page cut into patches, in bytes.

    transformers' `pixel_values` are an eighth part news: a page counts as two equal frames of a film, in float32.
    """

    pixels: torch.Tensor  # (merge**2 * P, channels, patch * patch) uint8
    grid: Grid
    factor: torch.Tensor  # (channels, 1) float32; pixels * factor + offset are what the tower reads
    offset: torch.Tensor  # (channels, 1) float32


def pixel_values(pages: Sequence[PagePatches], device: torch.device) -> torch.Tensor:
    """Join pages as `vision.use_linear_patch_embedding`'s towers read them: (patches, channels * patch * patch)."""
    pixels = torch.cat([page.pixels for page in pages]).to(device)
    values = pixels.float().mul_(pages[0].factor.to(device)).add_(pages[0].offset.to(device))
    return values.flatten(1)


@dataclass(frozen=True, eq=False)
class RankingPrompt:
    """The prompt of one window as tokens: one image token for each visual token, pixels not included."""

    input_ids: torch.Tensor  # (L,) int64, ending with ANSWER_OPENING
    is_visual: torch.Tensor  # (L,) bool
    image_grid_thw: torch.Tensor  # (N, 3) int64
    visual_counts: tuple[int, ...]  # P of each page
    text_ids: torch.Tensor  # tokens before the first image, vision markers left out
    query_ids: torch.Tensor  # the tokens that spell the query
    identifier_ids: torch.Tensor  # (N,) int64: the letters whose logits score the pages

    @property
    def read_position(self) -> int:
        """Where the letters' logits are read: the last prompt token."""
        return len(self.input_ids) - 1

    @property
    def mm_token_type_ids(self) -> torch.Tensor:
        """transformers' modality of each token, (L,) int32: 1 for visual tokens, 0 for text."""
        return self.is_visual.int()


@dataclass(frozen=True, eq=False)
class RankingInputs(RankingPrompt):
    """A prompt together with the pixels of its pages: all that transformers' own forward pass needs."""

    pixel_values: torch.Tensor  # (patches of all pages, channels * 2 * patch * patch) float32


def build_ranking_inputs(processor: Qwen3VLProcessor, query: str, images: Sequence[Image.Image]) -> RankingInputs:
    """Prepare one window: the query and its candidate pages, in the given order.

    Raises:
        ValueError: for a blank query, no page or more than 20, or a processor that cannot write the prompt.
    """
    check_window_length(len(images))
    pages = [_cut(processor, image) for image in images]
    prompt = build_ranking_prompt(processor, query, [grid for _, grid in pages])
    return RankingInputs(**vars(prompt), pixel_values=torch.cat([values for values, _ in pages]))


def check_sides(sides: Sequence[int]) -> tuple[int, ...]:
    """Return the sides; ValueError unless there is one at least, each once, of `LEAST_SIDE` to `MOST_SIDE` pixels."""
    if not sides or len(set(sides)) < len(sides) or not all(LEAST_SIDE <= side <= MOST_SIDE for side in sides):
        raise ValueError(
            f"sides are the longest sides in pixels at which pages are read, each once and from {LEAST_SIDE} to "
            f"{MOST_SIDE}, got {tuple(sides)}. Leave them out for the checkpoint's own."
        )
    return tuple(sides)


def own_side(processor: Qwen3VLProcessor) -> int:
    """Return the longest side at which a checkpoint reads pages: its image processor's ``page_side``, else `MAX_SIDE`.

    Raises:
        ValueError: when that is no number of pixels that a page may have.
    """
    side = getattr(processor.image_processor, "page_side", None)
    if side is None:
        return MAX_SIDE
    if not isinstance(side, int):
        raise ValueError(f"page_side in the image processor's configuration is a number of pixels, got {side!r}.")
    return check_sides([side])[0]


def prepare_page(processor: Qwen3VLProcessor, image: Image.Image, side: int | None = None) -> PagePatches:
    """Scale a page to at most ``side`` pixels (`own_side`), never up, and cut it into patches."""
    pixels, grid = _cut(processor, image, side, do_rescale=False, do_normalize=False, temporal_patch_size=1)
    how = processor.image_processor
    step = how.rescale_factor if how.do_rescale else 1.0
    mean, spread = (how.image_mean, how.image_std) if how.do_normalize else (0.0, 1.0)
    offset, divisor = (torch.tensor(part, dtype=torch.float32).expand(_CHANNELS)[:, None] for part in (mean, spread))
    levels = pixels.to(torch.uint8).unflatten(1, (_CHANNELS, -1))  # transformers without torchvision has them as floats
    return PagePatches(levels, grid, step / divisor, -offset / divisor)


def unreadable_page(place: int, size: tuple[int, int], error: ValueError) -> ValueError:
    """Say which page of a list the image processor refuses, such as one 200 times as long as wide."""
    return ValueError(
        f"Page {place} of the given list (from 0), {size[0]}x{size[1]} pixels, is none that the model can read: "
        f"{error}. Leave it out."
    )


def pixel_bounds(processor: Qwen3VLProcessor, side: int) -> dict[str, int]:
    """Return the image processor's bounds on the pixels of a page, in its words; wider for sides above its own."""
    bounds = processor.image_processor.size
    growth = max(1.0, side / own_side(processor)) ** 2
    return {"shortest_edge": bounds["shortest_edge"], "longest_edge": int(bounds["longest_edge"] * growth)}


def _cut(
    processor: Qwen3VLProcessor, image: Image.Image, side: int | None = None, **otherwise: Any
) -> tuple[torch.Tensor, Grid]:
    """Return a page's patches and their grid as the checkpoint's own processor makes them, or `otherwise`."""
    side = own_side(processor) if side is None else side
    page = fit_within(to_rgb(image), side)
    bounds = pixel_bounds(processor, side)
    prepared = processor.image_processor(images=[page], return_tensors="pt", size=bounds, **otherwise)
    return prepared["pixel_values"], tuple(prepared["image_grid_thw"][0].tolist())


_tokenizing = threading.Lock()
"""A tokenizer keeps, for all threads, how it was asked last: whether special tokens in a text count as such."""


def build_ranking_prompt(processor: Qwen3VLProcessor, query: str, grids: Sequence[Grid]) -> RankingPrompt:
    """Write the prompt for pages of which only the sizes are needed: their features may come from elsewhere."""
    query = readable_question(query)
    check_query(query)
    rendered = _render_chat(processor, len(grids))
    with _tokenizing:
        ids, query_ids = _encode_chat(processor.tokenizer, rendered, query)
        opening = single_token_id(processor.tokenizer, ANSWER_OPENING)
        identifier_ids = identifier_token_ids(processor.tokenizer, len(grids))
    image_id = processor.image_token_id
    if ids.count(image_id) != len(grids):
        raise ValueError(
            f"The chat template wrote {ids.count(image_id)} image tokens for {len(grids)} pages. "
            "Use the chat template of a Qwen3-VL checkpoint."
        )
    markers = {image_id, processor.vision_start_token_id, processor.vision_end_token_id}
    grid = torch.tensor(grids)  # (N, 3)
    counts = grid.prod(dim=1) // processor.image_processor.merge_size**2
    input_ids = torch.tensor([*ids, opening])
    repeats = torch.ones_like(input_ids).masked_scatter(input_ids == image_id, counts)
    input_ids = input_ids.repeat_interleave(repeats)
    return RankingPrompt(
        input_ids=input_ids,
        is_visual=input_ids == image_id,
        image_grid_thw=grid,
        visual_counts=tuple(counts.tolist()),
        text_ids=torch.tensor([i for i in ids[: ids.index(image_id)] if i not in markers]),
        query_ids=torch.tensor(query_ids, dtype=torch.int64),
        identifier_ids=identifier_ids,
    )


_STAND_IN = "\ue000"
"""Stands for the query while the chat template is rendered: a private character that no template writes."""


def _render_chat(processor: Qwen3VLProcessor, n: int) -> str:
    """Render the chat for ``n`` pages with `_STAND_IN` wherever the template writes the query."""
    words = prompt_words(_STAND_IN, n)
    content: list[dict[str, str]] = [{"type": "text", "text": words.text}, *({"type": "image"} for _ in range(n))]
    message: dict[str, Any] = {"role": "user", "content": content}
    if processor.chat_template is None:
        raise ValueError("The checkpoint has no chat template. Add the chat_template.jinja of a Qwen3-VL checkpoint.")
    try:
        rendered = processor.apply_chat_template([message], tokenize=False, add_generation_prompt=True)
    except (TemplateError, TypeError) as error:  # TypeError: a template for text alone joins the pictures' list to it
        raise ValueError(
            f"The chat template fails ({error}). Use the chat template of a Qwen3-VL checkpoint."
        ) from error
    if words.text not in rendered:
        raise ValueError("The chat template changes the prompt's text. Use the chat template of a Qwen3-VL checkpoint.")
    return rendered


def _encode_chat(tokenizer: PreTrainedTokenizerBase, rendered: str, query: str) -> tuple[list[int], list[int]]:
    """Tokenise the rendered chat around ``query``; return its ids and those of the query where it first stands.

    A query is text whatever it says: special tokens are those that the template writes, all others are spelled out. So
    a query with ``<|im_end|>`` in it cannot end the turn.
    """
    special = re.compile("(" + "|".join(re.escape(text) for text in _special_tokens(tokenizer)) + ")")
    ids: list[int] = []
    query_ids: list[int] = []
    for index, stretch in enumerate(special.split(rendered)):
        if index % 2:
            ids.append(tokenizer.convert_tokens_to_ids(stretch))
            continue
        start = stretch.find(_STAND_IN)
        encoded = tokenizer(
            stretch.replace(_STAND_IN, query),
            add_special_tokens=False,
            split_special_tokens=True,
            return_offsets_mapping=True,
        )
        ids += encoded["input_ids"]
        if start >= 0 and not query_ids:
            end = start + len(query)
            places = zip(encoded["input_ids"], encoded["offset_mapping"], strict=True)
            query_ids = [token for token, (first, last) in places if first < end and last > start]
    return ids, query_ids


def _special_tokens(tokenizer: PreTrainedTokenizerBase) -> Iterable[str]:
    return (token.content for token in tokenizer.added_tokens_decoder.values() if token.special)
