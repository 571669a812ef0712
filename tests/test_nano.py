"""The embedded pair: it loads with plain libraries, stays small, and both stages find printed words."""

from pathlib import Path

import pytest
from colpali_engine.models import ColQwen3
from PIL import Image, ImageDraw, ImageFont
from transformers import Qwen3VLForConditionalGeneration

import llama_index_ziprerank.pages
from llama_index_ziprerank.checkpoints import resolve_reranker, resolve_retriever
from llama_index_ziprerank.reranking import ListwiseReranker
from llama_index_ziprerank.retrieval.encoder import MultiVectorEncoder

FONT = Path(llama_index_ziprerank.pages.__file__).parent / "fonts" / "DejaVuSans.ttf"

TEXTS = (
    "Hash functions\nA hash function maps a message to a digest of fixed length. Such a digest resists collisions.",
    "Bar graphs\nA bar graph draws one bar a value. The width of the bars and the colour of their fill are options.",
    "Kerberos tickets\nThe realm issues tickets to principals. A keytab file stores the keys of a service principal.",
    "Sparse matrices\nEigenvalues of a sparse matrix are computed by Krylov iterations until the residual converges.",
    "Paragraph styles\nA style sets the font, the leading and the alignment of a paragraph on the page canvas.",
)
QUESTIONS = (
    "hash function digest",
    "bar graph width",
    "keytab service principal",
    "sparse matrix eigenvalues",
    "paragraph font leading",
)


@pytest.fixture(scope="module")
def pages() -> list[Image.Image]:
    font = ImageFont.truetype(str(FONT), 15)
    drawn = []
    for text in TEXTS:
        page = Image.new("RGB", (544, 704), "white")
        words, line, top = text.replace("\n", " ").split(), "", 60
        for word in [*words, *words, *words]:
            if font.getlength(f"{line} {word}") > 430:
                ImageDraw.Draw(page).text((56, top), line, fill="black", font=font)
                line, top = "", top + 21
            line = f"{line} {word}".strip()
        drawn.append(page)
    return drawn


def test_both_models_are_small_and_load_with_plain_libraries() -> None:
    models = (
        Qwen3VLForConditionalGeneration.from_pretrained(resolve_reranker("nano")),
        ColQwen3.from_pretrained(resolve_retriever("nano")),
    )
    for model in models:
        assert sum(parameter.numel() for parameter in model.parameters()) <= 15_000_000
    folder = Path(resolve_reranker("nano")).parent
    assert sum(path.stat().st_size for path in folder.rglob("*.safetensors")) <= 40_000_000


def test_the_first_stage_finds_the_page_that_holds_the_words(pages: list[Image.Image]) -> None:
    encoder = MultiVectorEncoder.from_pretrained("nano", device="cpu")
    vectors = encoder.encode_images(pages)
    right = 0
    for number, query in enumerate(encoder.encode_queries(QUESTIONS)):
        scores = [(query @ page.T).max(axis=1).sum() for page in vectors]
        right += max(range(len(pages)), key=scores.__getitem__) == number
    assert right >= 4  # one in five by chance


def test_the_reranker_prefers_the_page_that_holds_the_words_wherever_it_stands(pages: list[Image.Image]) -> None:
    reranker = ListwiseReranker.from_pretrained("nano", device="cpu")
    features = reranker.encode_pages(pages)
    right = 0
    for shift in range(len(pages)):
        shown = [(place + shift) % len(pages) for place in range(len(pages))]
        for number, question in enumerate(QUESTIONS):
            ranking = reranker.rerank(question, [features[i] for i in shown])
            right += shown[ranking.order[0]] == number
    assert right >= 13  # of 25; five by chance
