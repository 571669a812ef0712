"""Between the stages: the trained tower looks at every page once, and what it saw is kept (it is frozen now)."""

import math
import random
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import torch
from PIL import Image
from rich.progress import track
from safetensors import safe_open
from safetensors.torch import save_file
from transformers import PreTrainedTokenizerFast, Qwen3VLForConditionalGeneration

from llama_index_ziprerank.reranking.features import page_features
from llama_index_ziprerank.reranking.inputs import prepare_page
from llama_index_ziprerank.training.nano.corpus import load_page
from llama_index_ziprerank.training.nano.crops import degrade
from llama_index_ziprerank.training.nano.export import build_eyes, build_processor
from llama_index_ziprerank.training.nano.layout import CONTENT, EMBEDDING_NORM
from llama_index_ziprerank.training.nano.pairs import SeenPage
from llama_index_ziprerank.training.nano.queries import page_words
from llama_index_ziprerank.training.nano.reading import Reader

_TELLING = 0.25
"""Rarity below which a piece tells nothing: it stands on a quarter of the pages or so."""

SHARD = 100
"""Pages in one file of features: what an interrupted run loses at most."""


def sample_pages(paths: Sequence[Path], most: int, seed: int = 1) -> list[Path]:
    """Draw up to `most` pages, equally many from each manual."""
    manuals: dict[str, list[Path]] = defaultdict(list)
    for path in paths:
        manuals[path.parent.name].append(path)
    each, rng = most // len(manuals), random.Random(seed)
    return [path for _, pages in sorted(manuals.items()) for path in sorted(rng.sample(pages, min(each, len(pages))))]


def visual_norm(reader: Reader, tokenizer: PreTrainedTokenizerFast, paths: Sequence[Path]) -> float:
    """Mean length of the reader's merged tokens over some pages."""
    eyes = build_eyes(reader, tokenizer, EMBEDDING_NORM)  # scale 1
    merged = torch.cat([_see(eyes, tokenizer, path).flatten(0, 1) for path in paths])
    return float(merged[:, :CONTENT].norm(dim=-1).mean())


def worn_manuals(paths: Sequence[Path], share: float, seed: int = 1) -> set[str]:
    """Draw this share of the manuals of some pages: those whose pages the ranker's lists show as if scanned."""
    manuals = sorted({path.parent.name for path in paths})
    return set(random.Random(seed).sample(manuals, round(share * len(manuals))))


def see_pages(
    model: Qwen3VLForConditionalGeneration,
    tokenizer: PreTrainedTokenizerFast,
    paths: Sequence[Path],
    folder: Path,
    *,
    worn: bool = False,
) -> None:
    """Write the merged tokens of all pages into `folder`, a shard at a time; shards that are there are kept.

    A page that is `worn` looks scanned.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for start in track(range(0, len(paths), SHARD), "Looking at pages"):
        shard = folder / f"{start:06d}.safetensors"
        if not shard.exists():
            some = paths[start : start + SHARD]
            seen = {f"{path.parent.name}/{path.name}": _see(model, tokenizer, path, worn=worn) for path in some}
            partial = shard.with_suffix(f".{id(seen)}")
            save_file({name: merged.half().contiguous() for name, merged in seen.items()}, partial)
            partial.rename(shard)


def load_seen(corpus: Path, folder: Path) -> list[SeenPage]:
    """Join what was seen with the words of the corpus pages."""
    pages = []
    for shard in sorted(folder.glob("*.safetensors")):
        with safe_open(shard, "pt") as stored:
            for name in stored.keys():  # noqa: SIM118 - not a dict
                page = load_page(corpus / name)
                pages.append(SeenPage(page_words(page), stored.get_tensor(name), page.number))
    return pages


def _see(
    model: Qwen3VLForConditionalGeneration, tokenizer: PreTrainedTokenizerFast, path: Path, *, worn: bool = False
) -> torch.Tensor:
    """Merged tokens of one page as the reranker gets them at inference: (R, C, D)."""
    gray = load_page(path).image
    if worn:
        gray = degrade(torch.from_numpy(gray)[None].float())[0].byte().numpy()
    image = Image.fromarray(gray).convert("RGB")
    [features] = page_features(model, [prepare_page(build_processor(tokenizer), image)])
    _, height, width = features.grid
    return features.merged.cpu().view(height // 2, width // 2, -1)


def piece_rarity(pages: Sequence[SeenPage], tokenizer: PreTrainedTokenizerFast) -> torch.Tensor:
    """How much each word piece tells, (V,) in 0..1: inverse document frequency over its maximum, small values zero.

    What the chat template writes around the question tells nothing.
    """
    counts = torch.zeros(len(tokenizer))
    for page in pages:
        ids = tokenizer(" ".join(page.words.words), add_special_tokens=False).input_ids
        counts[list(set(ids))] += 1
    rarity = ((1 + len(pages)) / (1 + counts)).log() / math.log(1 + len(pages))
    rarity[[*tokenizer.all_special_ids, *tokenizer("assistant", add_special_tokens=False).input_ids]] = 0
    return torch.where(rarity < _TELLING, 0.0, rarity)
