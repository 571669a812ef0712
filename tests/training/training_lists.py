"""Training lists that a tiny model can learn, and what they leave in a checkpoint."""

import random
from collections.abc import Callable, Sequence
from pathlib import Path

from PIL import Image
from safetensors.torch import load_file
from torch import Tensor

from llama_index_ziprerank.training.recipes import Recipe
from llama_index_ziprerank.training.samples import RankingSample, sample_to_row

MakeRecipe = Callable[..., Recipe]

COLOURS = ["red", "green", "blue", "yellow", "black", "white"]

WORDS = (
    "about above after again angle arrow begin below black block board break bring built carry cause chart check child "
    "circle class clean clear close color common count cover cross curve data define depth direct double draft draw "
    "earth eight empty enter equal error every exact field figure final first fixed floor follow force frame front "
    "given glass global grand graph great green group happy heart heavy"
).split()


def colour_lists(count: int, candidates: int = 4, *, seed: int = 0) -> list[RankingSample]:
    """Lists of pages of different colours, one of them the positive; each list has a query of its own."""
    rng = random.Random(seed)
    lists = []
    for word in WORDS[:count]:
        shown = rng.sample(COLOURS, candidates)
        order = rng.sample(range(candidates), candidates)
        pages = [Image.new("RGB", (32, 32), colour) for colour in shown]
        lists.append(RankingSample(" ".join([word] * 4), pages, order, frozenset(order[:1])))
    return lists


def write_lists(folder: Path, lists: Sequence[RankingSample], name: str = "lists.jsonl") -> str:
    """Write lists of images as a JSONL file of one's own; return its path."""
    lines = []
    for number, sample in enumerate(lists):
        paths = [folder / f"{name}-{number}-{place}.png" for place in range(len(sample.pages))]
        for path, page in zip(paths, sample.pages, strict=True):
            assert isinstance(page, Image.Image)
            page.save(path)
        lines.append(sample_to_row(RankingSample(sample.query, paths, sample.order, sample.positives)))
    (folder / name).write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    return str(folder / name)


def weights_of(folder: Path) -> dict[str, Tensor]:
    """The weights of a checkpoint by name."""
    return load_file(folder / "model.safetensors")


def distance(first: Path, second: Path) -> float:
    """The largest difference between two checkpoints' weights."""
    ours, theirs = weights_of(first), weights_of(second)
    assert ours.keys() == theirs.keys()
    return max((ours[name] - theirs[name]).abs().max().item() for name in ours)
