"""The words of the reranking prompt, and nothing else.

They are the checkpoint's interface: ``mtri-admin/ZipRerank`` was trained on exactly these bytes.
"""

from dataclasses import dataclass

from llama_index_ziprerank.reranking.permutation import IDENTIFIERS, check_window_length

_BEFORE_QUERY = """\
You are RankGPT, an intelligent assistant that can rank passages based on their relevancy to the query.

I will provide you with {n} passages as images.
Rank the passages based on their relevance to the search query.

The images are provided in order: {pictures}.

Search Query: """

_AFTER_QUERY = """

Rank the passages above based on their relevance to the search query.
The passages should be listed in descending order using identifiers.
The most relevant passages should be listed first.
The output format should be [A] > [B], etc.
Only output the ranking results, do not say anything else."""


@dataclass(frozen=True)
class PromptWords:
    """The text of the user's turn, and where the query stands in it."""

    text: str
    query_start: int
    query_end: int


def prompt_words(query: str, n: int) -> PromptWords:
    """Write the text that goes before the ``n`` page images. Raises ValueError for a blank query or a bad ``n``."""
    check_window_length(n)
    check_query(query)
    pictures = ", ".join(f"Picture {i + 1} is passage [{IDENTIFIERS[i]}]" for i in range(n))
    before = _BEFORE_QUERY.format(n=n, pictures=pictures)
    return PromptWords(before + query + _AFTER_QUERY, len(before), len(before) + len(query))


def check_query(query: str) -> None:
    """Raise ValueError for a blank query."""
    if not query.strip():
        raise ValueError(f"Pages are ranked by a query, got a blank one: {query!r}. Pass the question as text.")
