"""Hard negatives: wrong pages that the retriever ranks high, with a margin to those that may be right after all.

Positive-aware mining, NV-Retriever (arXiv:2407.15831, section 3): a page that scores more than a part of the positive's
score is left out. What was mined lies beside the checkpoint, so a resumed run learns from the same pages.
"""

import hashlib
import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from llama_index_ziprerank.retrieval.encoder import MultiVectorEncoder
from llama_index_ziprerank.training.retriever.pairs import Corpus, Question
from llama_index_ziprerank.training.retriever.search import Found, search
from llama_index_ziprerank.training.retriever_recipe import Retriever

FILE_NAME = "negatives.json"
_DEPTH = 100  # pages that are looked through for each question


def mine(encoder: MultiVectorEncoder, corpus: Corpus, recipe: Retriever) -> list[list[int]]:
    """Return `recipe.mined` wrong pages for each question, the hardest first.

    Where too few pages are left within the margin, others of the corpus are drawn.

    Raises:
        ValueError: when the corpus has too few wrong pages for a question.
    """
    for question in corpus.questions:
        if len(corpus.pages) - len(question.relevant) < recipe.mined:
            raise ValueError(
                f"{question.text!r} has {len(corpus.pages) - len(question.relevant)} wrong pages in a corpus of "
                f"{len(corpus.pages)}, wanted {recipe.mined}. Pass a lower --mined, or lists with more pages."
            )
    found = search(encoder, corpus, recipe.mining_skip + recipe.mined + _DEPTH)
    return [
        choose(question, hits, recipe, len(corpus.pages))
        for question, hits in zip(corpus.questions, found, strict=True)
    ]


def choose(question: Question, found: Found, recipe: Retriever, pages: int) -> list[int]:
    """Pick one question's wrong pages out of what it found in a corpus of so many `pages`."""
    within = [
        page
        for page, score in zip(found.pages, found.scores, strict=True)
        if page not in question.relevant and score <= recipe.mining_margin * found.right
    ]
    chosen = within[recipe.mining_skip :][: recipe.mined]
    if len(chosen) == recipe.mined:
        return chosen
    spare = sorted(set(range(pages)) - question.relevant - set(chosen))
    random.Random(f"{recipe.seed}-{question.text}").shuffle(spare)
    avoided = set(found.pages)  # above the margin, or skipped
    spare.sort(key=lambda page: page in avoided)
    return chosen + spare[: recipe.mined - len(chosen)]


def mined_negatives(
    encoder: MultiVectorEncoder, corpus: Corpus, recipe: Retriever, *, writes: bool
) -> Sequence[Sequence[int]]:
    """Mine, or read what an interrupted run has mined for the same model, corpus and settings.

    Args:
        writes: whether this process is the one that writes the file.
    """
    path = Path(recipe.output_dir, FILE_NAME)
    made_of = {"model": encoder.fingerprint, "corpus": _digest(corpus), "settings": _settings(recipe)}
    if path.is_file():
        kept: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        if kept["made_of"] == made_of:
            negatives: list[list[int]] = kept["negatives"]
            return negatives
    negatives = mine(encoder, corpus, recipe)
    if writes:
        unfinished = path.with_suffix(".partial")
        unfinished.write_text(json.dumps({"made_of": made_of, "negatives": negatives}), encoding="utf-8")
        unfinished.replace(path)
    return negatives


def _settings(recipe: Retriever) -> dict[str, float]:
    return {name: getattr(recipe, name) for name in ("mined", "mining_margin", "mining_skip", "seed")}


def _digest(corpus: Corpus) -> str:
    told = [(question.text, sorted(question.relevant)) for question in corpus.questions]
    return hashlib.sha256(json.dumps([len(corpus.pages), told]).encode()).hexdigest()[:16]
