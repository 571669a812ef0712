"""nano's tokenizer: lower-case word pieces, so that "Configure" on a page and "configuring" asked for share a piece.

The words of the prompt's structure (chat markers, brackets, identifiers A to T) are added tokens, one id each.
"""

from collections.abc import Iterable

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from llama_index_ziprerank.reranking.permutation import IDENTIFIERS

VOCABULARY_SIZE = 8192
SPECIAL_TOKENS = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|image_pad|>",
    "<|video_pad|>",
    "<unk>",
)


def train_tokenizer(texts: Iterable[str]) -> PreTrainedTokenizerFast:
    """Train `VOCABULARY_SIZE` lower-case word pieces on `texts`."""
    tokenizer = Tokenizer(models.WordPiece(unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase()])
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Punctuation(), pre_tokenizers.Digits(individual_digits=False)]
    )
    tokenizer.decoder = decoders.WordPiece()
    identifiers = [AddedToken(text, single_word=True, normalized=False) for text in IDENTIFIERS]
    trainer = trainers.WordPieceTrainer(
        vocab_size=VOCABULARY_SIZE - len(identifiers),
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=list("[]>"),
        limit_alphabet=200,
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.add_tokens(identifiers)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        unk_token="<unk>",
        pad_token="<|endoftext|>",
        eos_token="<|im_end|>",
        additional_special_tokens=list(SPECIAL_TOKENS[1:-1]),
        model_max_length=262_144,
        padding_side="left",
    )
