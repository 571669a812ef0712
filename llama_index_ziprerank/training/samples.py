"""`RankingSample`: one training list, and the rules by which lists are cut, shuffled and turned into targets.

Nothing is ever relabelled: a candidate that the teacher left out stays unranked, and a list whose cut would lose a
positive gives the positive its last place (the reference replaces it by the teacher's favourite).
Letters: N candidates of a list. An *order* lists candidates, best first; *positives* are known to answer the query.
"""

import json
import os
import random
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from llama_index_ziprerank.reranking.permutation import complete_order
from llama_index_ziprerank.training.sources import PageSource


class SampleError(ValueError):
    """A training list that cannot be used; the message says why."""


@dataclass(frozen=True)
class RankingSample:
    """A query, its candidates, and what is known about their order."""

    query: str
    pages: Sequence[PageSource]
    """The N candidates, page images or texts, in the order of the first stage."""
    order: Sequence[int]
    """The teacher's order, best first; may leave candidates out."""
    positives: frozenset[int] = field(default_factory=frozenset)
    """Candidates known to answer the query, whatever the teacher says; may be empty."""

    def __post_init__(self) -> None:
        """Raise SampleError for a list that teaches nothing or names candidates that it does not have."""
        n = len(self.pages)
        if not self.query.strip():
            raise SampleError("the query is blank")
        if n < 2:
            raise SampleError(f"{n} candidates, wanted at least 2 to compare")
        if not self.order and not self.positives:
            raise SampleError("neither an order nor a positive")
        if len(set(self.order)) != len(self.order):
            raise SampleError(f"the order names a candidate twice: {list(self.order)}")
        if strangers := sorted({*self.order, *self.positives} - set(range(n))):
            raise SampleError(f"candidates {strangers} are named, but there are only 0..{n - 1}")


def target_order(order: Sequence[int], positives: Collection[int]) -> list[int]:
    """Return what the model is taught to say: the positives first, then the others, both in the teacher's order.

    Positives that the teacher left out follow the positives that it named.
    """
    named = [*order, *sorted(set(positives) - set(order))]
    return sorted(named, key=lambda candidate: candidate not in positives)  # stable


def target_ranks(order: Sequence[int], positives: Collection[int], n: int) -> list[int]:
    """Return each candidate's rank in the target order, from 0; those left out share the rank behind the last."""
    ranks = [len({*order, *positives})] * n
    for rank, candidate in enumerate(target_order(order, positives)):
        ranks[candidate] = rank
    return ranks


def cut_candidates(sample: RankingSample, most: int, *, as_given: bool = False) -> RankingSample:
    """Keep the teacher's best `most` candidates, shown in their given order (theirs by rank would give it away).

    A positive beyond the cut takes the last place, that of the worst candidate which is no positive. So does the
    teacher's favourite in a list to measure on that names no positive: it counts as relevant there.

    Args:
        sample: the list.
        most: candidates that stay at most.
        as_given: keep the first ones as they were given, for a list to measure on: the teacher must not choose them.

    Raises:
        ValueError: when `most` is below 2.
    """
    if most < 2:
        raise ValueError(f"A list is cut to at least 2 candidates, got {most}.")
    n = len(sample.pages)
    if n <= most:
        return sample
    ranking = complete_order(sample.order, n)
    preferred = list(range(n)) if as_given else ranking
    needed = sample.positives or {sample.order[0]}
    kept, lost = preferred[:most], [candidate for candidate in preferred[most:] if candidate in needed]
    replaceable = [candidate for candidate in kept if candidate not in needed]
    lost = lost[: len(replaceable)]
    stay = {*kept, *lost} - set(replaceable[len(replaceable) - len(lost) :])
    order = [candidate for candidate in ranking if candidate in stay and candidate in {*sample.order, *lost}]
    return _arrange(sample, sorted(stay), order)


def shuffle_candidates(sample: RankingSample, seed: int | str) -> RankingSample:
    """Show the candidates in another order; equal seeds give equal orders for a sample."""
    shown = list(range(len(sample.pages)))
    random.Random(f"{seed}-{sample.query}").shuffle(shown)
    return _arrange(sample, shown, sample.order)


def _arrange(sample: RankingSample, shown: Sequence[int], order: Iterable[int]) -> RankingSample:
    """Show the candidates `shown`, in that order, and renumber them everywhere."""
    number = {candidate: place for place, candidate in enumerate(shown)}
    return RankingSample(
        sample.query,
        [sample.pages[candidate] for candidate in shown],
        [number[candidate] for candidate in order],
        frozenset(number[candidate] for candidate in sample.positives if candidate in number),
    )


OWN_COLUMNS = frozenset({"query", "pages", "texts", "order", "positives"})
"""Columns of a JSONL file of one's own."""


def sample_from_row(row: Mapping[str, Any], folder: Path) -> RankingSample:
    """Read one row of a JSONL file of one's own.

    ``query`` (a string), either ``pages`` (paths of image files, relative to `folder`) or ``texts``, and at least one
    of ``order`` (candidates from 0, best first) and ``positives`` (candidates from 0).

    Raises:
        SampleError: when a column is missing, of the wrong type, unknown, or names a file that does not exist.
    """
    if unknown := sorted(set(row) - OWN_COLUMNS):
        raise SampleError(f"unknown columns {unknown}; a row may have {sorted(OWN_COLUMNS)}")
    given = [column for column in ("pages", "texts") if row.get(column) is not None]  # tables have both, one empty
    if len(given) != 1:
        raise SampleError('wanted either "pages" or "texts"')
    if not isinstance(row.get("query"), str):
        raise SampleError(f'wanted a string as "query", got {row.get("query")!r}')
    candidates = _listed(row, given[0], str)
    pages: list[PageSource] = list(candidates)
    if given == ["pages"]:
        pages = [folder / name for name in candidates]
        if missing := [name for name in candidates if not os.path.isfile(folder / name)]:  # also of impossible names
            raise SampleError(f"no image file {missing[0]!r:.300} in {str(folder)!r}")
    return RankingSample(row["query"], pages, _listed(row, "order", int), frozenset(_listed(row, "positives", int)))


def sample_to_row(sample: RankingSample) -> str:
    """Write a sample of texts or of image files as a line of JSON that `sample_from_row` reads (paths made absolute).

    Raises:
        ValueError: when its candidates are neither all texts nor all paths.
    """
    paths = [str(page.absolute()) for page in sample.pages if isinstance(page, Path)]
    texts = [page for page in sample.pages if isinstance(page, str)]
    if len(sample.pages) not in (len(paths), len(texts)):
        raise ValueError("Only lists of texts, or of paths of image files, can be written as JSON.")
    candidates = {"pages": paths} if paths else {"texts": texts}
    labels = {"order": list(sample.order), "positives": sorted(sample.positives)}
    return json.dumps({"query": sample.query, **candidates, **labels}, ensure_ascii=False)


def _listed(row: Mapping[str, Any], column: str, kind: type) -> list[Any]:
    values = row.get(column) or []
    if not isinstance(values, list) or not all(type(value) is kind for value in values):
        raise SampleError(f'wanted a list of {kind.__name__} as "{column}", got {values!r:.80}')
    return values
