"""The law of hostile PDFs: each gives pages or one clear error, in bounded time and memory, and nothing dies of it."""

from collections.abc import Iterable, Iterator

import pytest
from crafted_pdfs import CRAFTED
from good_pdfs import GOOD
from mutations import mutated
from odd_pdfs import NotFetched, odd_pdfs
from reading import MAX_MEMORY
from watched import PATIENCE, HostilePdf, Tally, outcomes

SEED = 7
GROWTH = 300
"""MiB that the reading process may grow by, over all files: pictures of pages, and not what a bomb unpacks to."""

QUICK = (
    "media box of NaN",
    "a million pages claimed",
    "page tree that is its own child",
    "picture of 60,000 by 60,000",
    "form that draws itself",
    "labels that hold themselves",
    "encryption of garbage",
)


def crafted(names: Iterable[str] = CRAFTED) -> Iterator[HostilePdf]:
    return (HostilePdf("crafted", name, CRAFTED[name]()) for name in names)


def damaged(count: int) -> Iterator[HostilePdf]:
    sources = {name: make() for name, make in GOOD.items()}
    return (HostilePdf(kind, name, content) for kind, name, content in mutated(sources, count, SEED))


def real_ones() -> list[HostilePdf]:
    try:
        return [HostilePdf("real", name, content) for name, content in odd_pdfs()]
    except NotFetched as error:
        pytest.skip(str(error))


def check(pdfs: Iterable[HostilePdf]) -> Tally:
    tally = Tally()
    for pdf, outcome in outcomes(pdfs):
        tally.add(pdf, outcome)
    print(tally.report())
    assert not [(pdf.kind, pdf.name, outcome) for pdf, outcome in tally.violations]
    assert tally.slowest[0] < PATIENCE
    assert tally.largest_program[0] <= MAX_MEMORY
    assert tally.own_last - tally.own_first < GROWTH
    return tally


def test_a_few_hostile_pdfs_give_pages_or_one_clear_error() -> None:
    tally = check([*crafted(QUICK), *damaged(9)])
    assert tally.total == 16


@pytest.mark.slow
def test_a_thousand_damaged_and_crafted_pdfs_give_pages_or_one_clear_error() -> None:
    assert check([*crafted(), *damaged(1000 - len(CRAFTED))]).total == 1000


@pytest.mark.slow
def test_real_odd_pdfs_give_pages_or_one_clear_error() -> None:
    assert check(real_ones()).total >= 100


@pytest.mark.slow
def test_damaged_copies_of_real_odd_pdfs_give_pages_or_one_clear_error() -> None:
    sources = {pdf.name.replace("/", "-"): pdf.content for pdf in real_ones() if len(pdf.content) < 500_000}
    check(HostilePdf(kind, name, content) for kind, name, content in mutated(sources, 200, SEED))
