from pathlib import Path

import pytest
from hypothesis import settings
from PIL import Image
from tokenizers import AddedToken, Tokenizer, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast, Qwen3VLProcessor

from llama_index_ziprerank.reranking import ListwiseReranker
from llama_index_ziprerank.reranking.permutation import IDENTIFIERS

settings.register_profile("no deadline", deadline=None)  # a busy machine is not a failure
settings.load_profile("no deadline")

PARITY = Path(__file__).parents[1] / "data" / "parity"

LETTERED_TEMPLATE = (
    "{%- for message in messages %}<|im_start|>{{ message.role }}\n"
    "{%- for part in message.content %}"
    "{%- if part.type == 'image' %}[{{ 'ABCDEFGHIJKLMNOPQRST'[loop.index0 - 1] }}]"
    "<|vision_start|><|image_pad|><|vision_end|>{% else %}{{ part.text }}{% endif %}"
    "{%- endfor %}<|im_end|>\n{%- endfor %}"
    "{%- if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
"""A chat template that writes the identifier beside each image, as a checkpoint's own template may."""


@pytest.fixture(scope="session")
def reranker() -> ListwiseReranker:
    """The tiny random checkpoint of the parity data."""
    return ListwiseReranker.from_pretrained(str(PARITY / "checkpoint"), device="cpu")


@pytest.fixture(scope="session")
def pages() -> list[Image.Image]:
    """Twenty small pages of a manual."""
    return [Image.open(PARITY / "pages" / f"small-{i:03d}.png").convert("RGB") for i in range(12, 32)]


@pytest.fixture(scope="session")
def mixed_pages(pages: list[Image.Image]) -> list[Image.Image]:
    """Three pages of three sizes."""
    return [pages[0], pages[1].crop((0, 0, 200, 420)), pages[2].resize((500, 300))]


@pytest.fixture(scope="session")
def lower_casing_processor(reranker: ListwiseReranker) -> Qwen3VLProcessor:
    """A processor whose tokenizer is lower-casing WordPiece and whose template names each image by its letter."""
    words = "set the line width of an axis search query : user assistant draw bar graph ##s ##ing".split()
    special = ["<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>"]
    vocabulary = {word: i for i, word in enumerate(["[UNK]", *words, "[", "]", ">"])}
    core = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    core.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase()])
    core.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Punctuation()])
    core.add_special_tokens(special)
    core.add_tokens([AddedToken(letter, single_word=True, normalized=False) for letter in IDENTIFIERS])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, unk_token="[UNK]", eos_token="<|im_end|>")
    original = reranker.processor
    return Qwen3VLProcessor(
        original.image_processor, tokenizer, original.video_processor, chat_template=LETTERED_TEMPLATE
    )
