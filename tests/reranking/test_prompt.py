import pytest
from hypothesis import given
from hypothesis import strategies as st

from llama_index_ziprerank.reranking.prompt import prompt_words

GOLDEN = b"""\
You are RankGPT, an intelligent assistant that can rank passages based on their relevancy to the query.

I will provide you with 3 passages as images.
Rank the passages based on their relevance to the search query.

The images are provided in order: Picture 1 is passage [A], Picture 2 is passage [B], Picture 3 is passage [C].

Search Query: How wide is a {line}?

Rank the passages above based on their relevance to the search query.
The passages should be listed in descending order using identifiers.
The most relevant passages should be listed first.
The output format should be [A] > [B], etc.
Only output the ranking results, do not say anything else."""


def test_the_prompt_is_the_released_one_byte_for_byte() -> None:
    assert prompt_words("How wide is a {line}?", 3).text.encode() == GOLDEN


@given(st.text().filter(str.strip), st.integers(1, 20))
def test_the_query_stands_where_the_prompt_says(query: str, n: int) -> None:
    words = prompt_words(query, n)
    assert words.text[words.query_start : words.query_end] == query


@pytest.mark.parametrize("query", ["", " ", "\n\t "])
def test_a_blank_query_is_refused(query: str) -> None:
    with pytest.raises(ValueError, match="blank"):
        prompt_words(query, 3)
