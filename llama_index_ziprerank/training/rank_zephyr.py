"""RankZephyr's training data (arXiv:2312.02724) as samples: conversations in which a teacher orders lettered passages.

A row's ``conversations`` are a system prompt, a request ("I will provide you with 3 passages … [A] … [B] … Search
Query: …") and an answer ("[B] > [A] > [C]"). There are no positives, only the teacher's order.
"""

import re
from collections.abc import Mapping
from typing import Any

from llama_index_ziprerank.reranking.permutation import IDENTIFIERS
from llama_index_ziprerank.training.samples import RankingSample, SampleError

COLUMN = "conversations"

_ANNOUNCED = re.compile(r"\bprovide you with (\d+) passages")
_QUERY = re.compile(r"\nSearch Query:[ \t]*(\S.*?)\.?\s*\n", re.DOTALL)  # the template ends the query with a full stop


def rank_zephyr_sample(row: Mapping[str, Any]) -> RankingSample:
    """Read one conversation.

    Raises:
        SampleError: when it is not laid out as described, its passages are not as many as it announces, or the answer
            names others.
    """
    try:
        _, request, answer = (str(turn["value"] or "") for turn in row[COLUMN])
    except (KeyError, TypeError, ValueError) as error:
        raise SampleError("wanted three turns with a 'value' each: system, request, answer") from error
    queries = list(_QUERY.finditer(request))
    if not queries:
        raise SampleError("the request has no line 'Search Query: …'")
    passages = _passages(request[: queries[-1].start()])
    announced = _ANNOUNCED.search(request)
    if announced and int(announced[1]) != len(passages):
        raise SampleError(f"the request announces {announced[1]} passages and gives {len(passages)}")
    return RankingSample(queries[-1][1].strip(), passages, _order(answer, len(passages)))


def _passages(text: str) -> list[str]:
    """Split at lines that begin with the next identifier; letters that come out of turn belong to a passage."""
    starts = []
    end = 0
    for letter in IDENTIFIERS:
        found = re.compile(rf"^\[{letter}\] ?", re.MULTILINE).search(text, end)
        if not found:
            break
        starts.append(found)
        end = found.end()
    ends = [*(start.start() for start in starts[1:]), len(text)]
    return [text[start.end() : stop].strip() for start, stop in zip(starts, ends, strict=True)]


def _order(answer: str, n: int) -> list[int]:
    letters = re.findall(r"\[([A-Z])\]", answer)
    if strangers := sorted(set(letters) - set(IDENTIFIERS[:n])):
        raise SampleError(f"the answer names {strangers}, but there are only {n} passages")
    return [IDENTIFIERS.index(letter) for letter in letters]
