"""Which adapter reads which training data: known by the columns of the first row."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TypeAlias

from torch.utils.data import Subset

from llama_index_ziprerank.training import mmdocir, rank_zephyr
from llama_index_ziprerank.training.recipes import Recipe
from llama_index_ziprerank.training.rows import Malformed, Row, SampleDataset, columns_of, hold_out, open_rows
from llama_index_ziprerank.training.samples import RankingSample, sample_from_row

Lists: TypeAlias = SampleDataset | Subset[RankingSample]


def open_samples(
    source: str, *, max_candidates: int, pages: str | None = None, malformed: Malformed = "refuse"
) -> SampleDataset:
    """Open training lists of any layout that we know.

    Args:
        source: a .jsonl, .json or .parquet file, or a data set on the Hugging Face Hub.
        max_candidates: longer lists are cut (`samples.cut_candidates`).
        pages: for a teacher's rankings, the folder of pages: parquet files, or what `ziprerank label` was given.
        malformed: whether rows that cannot be used are refused or skipped.

    Raises:
        FileNotFoundError: when data or page images do not exist.
        ValueError: when the columns are unknown, `pages` is missing, or rows are malformed and refused.
    """
    rows = open_rows(source)
    to_sample = _adapter(columns_of(rows, source), source, pages)
    return SampleDataset(rows, to_sample, source, max_candidates=max_candidates, malformed=malformed)


def _adapter(columns: set[str], source: str, pages: str | None) -> Callable[[Row], RankingSample]:
    if rank_zephyr.COLUMN in columns:
        return rank_zephyr.rank_zephyr_sample
    if set(mmdocir.COLUMNS) <= columns:
        if pages is None:
            raise ValueError(
                f"{source!r} holds a teacher's rankings of pages, but not the pages. Pass --pages with the folder that "
                "was labelled, or that of MMDocIR's training parquet files."
            )
        return mmdocir.DistilledRankings(mmdocir.open_pages(Path(pages)))
    if "query" in columns and {"pages", "texts"} & columns:
        return partial(sample_from_row, folder=Path(source).expanduser().parent)
    raise ValueError(
        f"{source!r} has the columns {', '.join(sorted(columns))}. Training lists have {rank_zephyr.COLUMN!r} "
        f"(RankZephyr), {', '.join(mmdocir.COLUMNS)} (distilled MMDocIR, `ziprerank label`), or query, pages or texts, "
        "and order or positives (your own)."
    )


def training_data(recipe: Recipe) -> tuple[Lists, Lists | None, str]:
    """Open a recipe's lists to learn from and those to measure on, and describe them in a sentence.

    Errors are those of `open_samples`, and ValueError when nothing is left to learn from.
    """

    def opened(source: str) -> SampleDataset:
        return open_samples(
            source, max_candidates=recipe.max_candidates, pages=recipe.pages, malformed=recipe.malformed
        )

    samples = opened(recipe.data)
    described = f"`{recipe.data}`: {len(samples):,} lists"
    if samples.malformed:
        described += f" ({len(samples.malformed):,} rows that could not be used were left out)"
    if recipe.eval_data:
        measured = opened(recipe.eval_data).measured()
        return samples, measured, f"{described}. Measured on `{recipe.eval_data}`: {len(measured):,} lists."
    if not recipe.held_out:
        return samples, None, f"{described}."
    learned, held_out = hold_out(samples, recipe.held_out)
    return learned, held_out, f"{described}, of which {len(held_out):,} were held out, with all lists of their queries."
