"""A question as the models can read it: a text of any length and any characters becomes one that a tokenizer takes."""

from warnings import warn

from llama_index_ziprerank.pages.page import encodable

MOST_LETTERS = 8_000
"""Of a question; about 2,000 tokens. Retrievers were trained on questions of a line or two, rerankers likewise."""


class QuestionWarning(UserWarning):
    """A question was cut; the message says to what length."""


def readable_question(text: str) -> str:
    """Return `text` without what tokenizers refuse (lone surrogates), cut with a warning when it is too long.

    It is cut and not refused: chat engines hand on whatever was pasted, and other retrievers and rerankers of
    LlamaIndex cut at their model's limit too.
    """
    if len(text) > MOST_LETTERS:
        warn(
            f"A question of {len(text):,} characters is cut to its first {MOST_LETTERS:,}. Ask in fewer words.",
            QuestionWarning,
            stacklevel=3,
        )
    return encodable(text[:MOST_LETTERS])
