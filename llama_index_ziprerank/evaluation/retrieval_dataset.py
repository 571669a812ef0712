"""Questions and what answers them: the data set that a retriever, or a whole pipeline, is measured on."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llama_index_ziprerank.evaluation.runs import read_jsonl, read_qrels, write_jsonl, write_qrels
from llama_index_ziprerank.evaluation.tracking import Track, silently
from llama_index_ziprerank.labels import KINDS, draw, label_manual
from llama_index_ziprerank.labels.headings import read_outline
from llama_index_ziprerank.pages.pdf import count_pages, read_pages

_CANDIDATES = "candidates.jsonl"
_SIDE = 64  # pixels: pages are read for their text alone


@dataclass(frozen=True)
class RetrievalDataset:
    """Queries by id, and for each the ids of the nodes or pages that answer it, with grades (1 where all are equal)."""

    queries: dict[str, str]
    qrels: dict[str, dict[str, int]]
    candidates: frozenset[str] | None = None
    """The pages that may compete, where the labels know: of a manual all but contents and index. None: all."""

    def __post_init__(self) -> None:
        if not self.queries:
            raise ValueError("A data set needs at least one query, got none.")
        unanswered = [
            query for query in self.queries if not any(grade > 0 for grade in self.qrels.get(query, {}).values())
        ]
        if unanswered:
            raise ValueError(
                f"{len(unanswered)} of {len(self.queries)} queries have no relevant page, such as {unanswered[0]!r}. "
                "Name one for each, or leave the query out."
            )

    @classmethod
    def from_pairs(cls, pairs: Iterable[tuple[str, Sequence[str]]]) -> "RetrievalDataset":
        """Make a set of (question, ids of what answers it) pairs.

        Raises:
            ValueError: for a text in place of ids.
        """
        numbered = {f"q{number}": pair for number, pair in enumerate(pairs, start=1)}
        queries = {query_id: question for query_id, (question, _) in numbered.items()}
        return cls(queries, {query_id: _graded(queries[query_id], ids) for query_id, (_, ids) in numbered.items()})

    @classmethod
    def from_relevant_docs(
        cls, queries: Mapping[str, str], relevant_docs: Mapping[str, Sequence[str]]
    ) -> "RetrievalDataset":
        """Take the two fields of LlamaIndex's former `EmbeddingQAFinetuneDataset`, whose JSON files have them too.

        Raises:
            ValueError: as `from_pairs`.
        """
        return cls(dict(queries), {query_id: _graded(query_id, ids) for query_id, ids in relevant_docs.items()})

    @classmethod
    def from_manual(
        cls,
        path: str | Path,
        *,
        kinds: Sequence[str] = KINDS,
        count: int | None = None,
        seed: int = 0,
        track: Track = silently,
    ) -> "RetrievalDataset":
        """Take queries and answers from a PDF itself: its outline, index and captions (`labels`).

        Pages are named ``manual.pdf:p17``, by their place in the file from 1. `count` queries of each kind are drawn.

        Raises:
            PageError: when the PDF cannot be read.
            ValueError: when it gives no query of these kinds.
        """
        path = Path(path)
        pages = list(track(read_pages(path, max_side=_SIDE), f"{path.name}: reading", count_pages(path)))
        texts, printed = [page.text for page in pages], [page.label for page in pages]
        labelled = label_manual(read_outline(path), texts, printed, kinds)
        asked = draw(path.stem, labelled.queries, count, seed)
        if not asked:
            raise ValueError(
                f"{path} gives no query of the kinds {', '.join(kinds)}. It needs bookmarks, an index, or captions."
            )
        return cls(
            {query_id: query.text for query_id, query in asked.items()},
            {query_id: dict.fromkeys(_names(path, query.pages), 1) for query_id, query in asked.items()},
            frozenset(_names(path, labelled.candidates)),
        )

    @classmethod
    def load(cls, folder: str | Path) -> "RetrievalDataset":
        """Read `queries.jsonl` ({"query_id", "query"} a line) and `qrels.jsonl` or `qrels.trec` from a folder.

        Where there is a `candidates.jsonl` ({"page_id"} a line), only its pages compete.

        Raises:
            FileNotFoundError: when one is missing.
            ValueError: naming a line that is not laid out so, or a query without an answer.
        """
        folder = Path(folder)
        own, trec, competing = folder / "qrels.jsonl", folder / "qrels.trec", folder / _CANDIDATES
        asked = _rows(folder / "queries.jsonl", "query_id", "query")
        queries = {str(row["query_id"]): str(row["query"]) for row in asked}
        candidates = None
        if competing.is_file():
            candidates = frozenset(str(row["page_id"]) for row in _rows(competing, "page_id"))
        return cls(queries, read_qrels(trec if trec.is_file() and not own.is_file() else own), candidates)

    def save(self, folder: str | Path) -> None:
        """Write what `load` reads."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        write_jsonl(folder / "queries.jsonl", ({"query_id": one, "query": text} for one, text in self.queries.items()))
        write_qrels(folder / "qrels.jsonl", self.qrels)
        if self.candidates is None:
            (folder / _CANDIDATES).unlink(missing_ok=True)
        else:
            write_jsonl(folder / _CANDIDATES, ({"page_id": page} for page in sorted(self.candidates)))


def _rows(path: Path, *columns: str) -> list[dict[str, Any]]:
    """Read a file of JSON lines; ValueError naming the first that lacks a column."""
    rows = list(read_jsonl(path))
    if bad := [row for row in rows if not set(columns) <= set(row)]:
        wanted = ", ".join(f'"{column}": …' for column in columns)
        raise ValueError(f"{path}: wanted {{{wanted}}}, got {bad[0]}.")
    return rows


def _graded(question: str, ids: Sequence[str]) -> dict[str, int]:
    if isinstance(ids, str):
        raise ValueError(
            f"What answers {question!r} is a list of ids, got the text {ids!r}, which would count letter by letter. "
            f"Write [{ids!r}]."
        )
    return dict.fromkeys(ids, 1)


def _names(path: Path, pages: Iterable[int]) -> list[str]:
    return [f"{path.name}:p{page}" for page in pages]
