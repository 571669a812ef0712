"""What all methods get: weights, pages and questions."""

from collections.abc import Sequence
from dataclasses import dataclass
from random import Random

from PIL import Image
from transformers import Qwen3VLForConditionalGeneration

from llama_index_ziprerank.pages.text import render_text
from llama_index_ziprerank.reranking import ListwiseReranker, PageFeatures

_WORDS = "width line axis bar graph table value page title legend marker colour grid scale font curve key label".split()
_WORDS_A_PAGE = 400


@dataclass(frozen=True, eq=False)
class Subject:
    """One list of pages, with the models that rank it."""

    reranker: ListwiseReranker
    twin: Qwen3VLForConditionalGeneration
    """The same weights with transformers' own tower (`as_transformers_has_it`)."""
    images: Sequence[Image.Image]
    features: Sequence[PageFeatures]
    """Of the same pages, for the warm methods; empty where there is none of them."""
    queries: Sequence[str]
    quantized: ListwiseReranker | None = None
    """The same weights, smaller ones in the language model; None where no method asks for them."""

    @property
    def models(self) -> list[Qwen3VLForConditionalGeneration]:
        """All models that a method may run."""
        smaller = [] if self.quantized is None else [self.quantized.model]
        return [self.reranker.model, self.twin, *smaller]

    @property
    def name(self) -> str:
        """How many pages of what size."""
        return f"{len(self.images)} pages of {self.images[0].width}x{self.images[0].height}"

    @property
    def feature_bytes(self) -> int:
        """Memory that the features take."""
        return sum(layer.nbytes for page in self.features for layer in (page.merged, *page.deepstack))


def page_images(count: int, size: tuple[int, int], seed: int = 0) -> list[Image.Image]:
    """Draw pages full of words, of (width, height) pixels, no two alike."""
    draw = Random(seed)
    texts = [" ".join(draw.choices(_WORDS, k=_WORDS_A_PAGE)) for _ in range(count)]
    return [render_text(text, max(size)).crop((0, 0, *size)) for text in texts]


def questions(count: int) -> list[str]:
    """Write questions, no two alike."""
    return [f"How do I set the {_WORDS[i % len(_WORDS)]} of figure {i + 1}?" for i in range(count)]
