"""`ziprerank index` and `ziprerank ask`: PDF files become an index, a question becomes a ranked list of pages."""

import io
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from PIL import Image
from rich.table import Table

from llama_index_ziprerank.checkpoints import EMBEDDED
from llama_index_ziprerank.cli.console import (
    AsJson,
    FirstStageWeight,
    KeepRatio,
    Pruning,
    Sides,
    check_target,
    err,
    hide_weight_bars,
    out,
    plain_warnings,
    print_json,
    side_list,
    track,
)
from llama_index_ziprerank.cli.reading import MaxPages, Password, Reading, SkipBroken
from llama_index_ziprerank.cli.report import check_report, save_report
from llama_index_ziprerank.pages.page import MAX_PAGES, PageWarning

if TYPE_CHECKING:
    from llama_index.core.schema import NodeWithScore

    from llama_index_ziprerank import ColPaliIndex, ZipRerankPostprocessor

CANDIDATES = 20  # pages of the first stage that the reranker sees, unless more are to be shown: one window

Files = Annotated[list[Path], typer.Argument(metavar="PDF", help="PDF files.", show_default=False)]
Retriever = Annotated[
    str | None, typer.Option(metavar="NAME", help="First-stage model  [default: nano]", show_default=False)
]
Reranker = Annotated[str, typer.Option(metavar="NAME", help="Reranker; `ziprerank models` lists some.")]


@dataclass(frozen=True)
class FoundPage:
    """One page of an answer. Ranks and page numbers count from 1; an index made in Python may lack the latter."""

    rank: int
    rank_before: int
    file: str
    page_label: str | None
    page_number: int | None
    score: float
    logit: float
    first_stage_score: float


def index(
    files: Files,
    to: Annotated[Path, typer.Option(metavar="DIR", help="Folder of the index, made where it is missing.")],
    retriever: Retriever = None,
    warm: Annotated[
        str | None,
        typer.Option(
            metavar="MODEL",
            help="Reranker whose vision tower reads the pages now, so that no question waits for it.",
            show_default=False,
        ),
    ] = None,
    warm_dtype: Annotated[
        str | None,
        typer.Option(
            metavar="TYPE",
            help="Stored as float32, bfloat16, float16 or int8  [default: the exact one of the model]",
            show_default=False,
        ),
    ] = None,
    sides: Sides = None,
    password: Password = None,
    skip_broken: SkipBroken = False,
    max_pages: MaxPages = MAX_PAGES,
) -> None:
    """Build an index of PDF files in a folder, or add them to the index there.

    A file that is there already is brought up to date: pages that it has no longer leave the index.
    """
    if warm_dtype and not warm:
        raise ValueError("--warm-dtype says how --warm stores features. Name the reranker: --warm nano.")
    if sides and not warm:
        raise ValueError("--sides says how large the reranker of --warm reads pages. Name it: --warm nano.")
    hide_weight_bars()
    started = time.perf_counter()
    reranker = _reader_ahead(warm, warm_dtype, sides) if warm else None
    with _build_index(files, retriever, Reading(password, skip_broken, max_pages), reranker, to) as built:
        pages = built.store.count()
        if reranker:
            _warm(built, reranker)
    err.print(f"The index in {to} holds {pages} pages; built in {time.perf_counter() - started:.1f} s.", soft_wrap=True)


def ask(
    question: Annotated[str, typer.Argument(metavar="QUESTION", help="What to look for.", show_default=False)],
    more_files: Annotated[list[Path] | None, typer.Argument(metavar="FILE", hidden=True)] = None,
    from_index: Annotated[
        Path | None, typer.Option("--index", metavar="DIR", help="Index made by `ziprerank index`.", show_default=False)
    ] = None,
    pdf: Annotated[
        list[Path] | None, typer.Option(metavar="FILE...", help="PDF files to search directly.", show_default=False)
    ] = None,
    model: Reranker = EMBEDDED,
    retriever: Retriever = None,
    top_n: Annotated[int, typer.Option(metavar="N", min=1, help="Pages to show.")] = 5,
    keep_ratio: KeepRatio = None,
    pruning: Pruning = None,
    first_stage_weight: FirstStageWeight = None,
    sides: Sides = None,
    as_json: AsJson = False,
    picture: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Draw the pages found as a contact sheet.", show_default=False)
    ] = None,
    report: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Show as HTML why: what was read.", show_default=False)
    ] = None,
    password: Password = None,
    skip_broken: SkipBroken = False,
    max_pages: MaxPages = MAX_PAGES,
) -> None:
    """Find the pages that answer a question, in an index or in PDF files."""
    files = [*(pdf or []), *(more_files or [])]
    reading = Reading(password, skip_broken, max_pages)
    if not question.strip():
        raise ValueError(f"A question must contain text, got {question!r}.")
    _check_source(from_index, pdf, files, retriever, reading)
    _check_picture(picture)
    check_report(report)
    for target in (picture, report):
        if target:
            check_target(target)
    hide_weight_bars()
    from llama_index_ziprerank import ZipRerankPostprocessor
    from llama_index_ziprerank.reranking.fusion import check_first_stage_weight
    from llama_index_ziprerank.reranking.pruning import check_pruning

    check_pruning(keep_ratio, pruning)  # the postprocessor's own checks speak pydantic
    check_first_stage_weight(first_stage_weight)
    reranker = ZipRerankPostprocessor(
        model=model,
        top_n=top_n,
        keep_ratio=keep_ratio,
        pruning=pruning,
        first_stage_weight=first_stage_weight,
        sides=_checked(sides),
    )
    candidates = max(CANDIDATES, top_n)
    with _open_index(from_index) if from_index else _build_index(files, retriever, reading, reranker) as source:
        if source.feature_dir.is_dir():
            reranker.use_cache_dir(source.feature_dir)
        started = time.perf_counter()
        with err.status("asking"):
            nodes = _ask(source, question, reranker, candidates)
        seconds = time.perf_counter() - started
        pages = [_found(rank, node) for rank, node in enumerate(nodes, start=1)]
        if picture and nodes:
            _draw(question, pages, nodes).save(picture)
        if as_json:
            print_json({"question": question, "model": model, "seconds": seconds, "pages": [*map(asdict, pages)]})
        else:
            _print_table(question, pages)
            made = f" Picture: {picture}" if picture and nodes else ""
            err.print(f"Found in {seconds:.1f} s.{made}", soft_wrap=True)
        if report:
            save_report(source, question, reranker, candidates, report)


def _check_source(
    index: Path | None, pdf: list[Path] | None, files: list[Path], retriever: str | None, reading: Reading
) -> None:
    if index and files:
        raise ValueError("Pass either --index DIR or --pdf FILE, not both.")
    if not index and not pdf:
        raise ValueError("Nothing to search. Pass --index DIR or --pdf FILE.")
    if index and retriever:
        raise ValueError("--retriever has no effect with --index, which knows its own. Leave it out.")
    if index and reading != Reading():
        raise ValueError(
            "--password, --skip-broken and --max-pages tell how PDF files are read, and with --index none is. "
            "Leave them out, or pass them to `ziprerank index`."
        )


def _checked(sides: str | None) -> tuple[int, ...] | None:
    """Take the sides; the postprocessor's own check speaks pydantic."""
    from llama_index_ziprerank.reranking.inputs import check_sides

    found = side_list(sides)
    return None if found is None else check_sides(found)


def _check_picture(picture: Path | None) -> None:
    """Refuse before the work what could not be saved after it."""
    if picture is None:
        return
    try:
        Image.new("RGB", (1, 1)).save(io.BytesIO(), Image.registered_extensions()[picture.suffix.lower()])
    except (KeyError, OSError, ValueError) as error:  # Pillow knows no such format, reads it only, or not in colour
        raise ValueError(f"{picture} has no ending of a picture that can be written. Name it .png or .jpg.") from error


def _open_index(folder: Path) -> "ColPaliIndex":
    from llama_index_ziprerank import ColPaliIndex

    build = f"ziprerank index FILE.pdf --to {folder}"
    if not _holds_index(folder):
        raise FileNotFoundError(f"{folder} holds no index. Build one: {build}")
    source = ColPaliIndex.load(folder)
    if not source.store.count():
        source.close()
        raise ValueError(f"The index in {folder} holds no pages. Add some: {build}")
    return source


def _holds_index(path: Path) -> bool:
    from llama_index_ziprerank.retrieval.folder import IndexFolder

    folder = IndexFolder(path)
    folder.finish_replacing()
    return folder.holds_index


def _build_index(
    files: list[Path],
    retriever: str | None,
    reading: Reading,
    reranker: "ZipRerankPostprocessor | None",
    persist_dir: Path | None = None,
) -> "ColPaliIndex":
    """Index files; in an index that is there already, in place of what it holds of them."""
    from llama_index_ziprerank import ColPaliIndex

    model = retriever or EMBEDDED
    documents = track(reading.documents(files), "indexing pages", reading.count_pages(files))
    if reranker:
        reranker.cache_cost([])  # loads it: what is wrong with it is told before an hour of indexing, not after
    with plain_warnings(PageWarning):
        if persist_dir is None or not _holds_index(persist_dir):
            return ColPaliIndex.from_documents(documents, model=model, persist_dir=persist_dir)
        built = ColPaliIndex.load(persist_dir, model=model)
        try:
            built.refresh_ref_docs(documents)
        except BaseException:
            built.close()
            raise
        return built


def _reader_ahead(model: str, dtype: str | None, sides: str | None) -> "ZipRerankPostprocessor":
    """Check the options of ``--warm``."""
    from llama_index_ziprerank import ZipRerankPostprocessor
    from llama_index_ziprerank.reranking.stored_features import check_stored_type

    stored = check_stored_type(dtype) if dtype else None
    return ZipRerankPostprocessor(model=model, cache_dtype=stored, sides=_checked(sides))


def _warm(built: "ColPaliIndex", reranker: "ZipRerankPostprocessor") -> None:
    """Say what the features will take on disk, then compute and write those that are not there yet."""
    reranker.use_cache_dir(built.feature_dir)
    cost = reranker.cache_cost(built.nodes())
    err.print(
        f"Vision features of {cost.pages} pages for {reranker.model} will take {cost.bytes / 1e6:,.1f} MB "
        f"in {built.feature_dir}.",
        soft_wrap=True,
    )
    reranker.cache_pages(track(built.nodes(), "reading pages", built.store.count()))


def _ask(
    source: "ColPaliIndex", question: str, reranker: "ZipRerankPostprocessor", candidates: int
) -> "list[NodeWithScore]":
    """Ask the query engine for its pages; no LLM is there to write an answer."""
    from llama_index.core.llms import MockLLM
    from llama_index.core.schema import QueryBundle

    engine = source.as_query_engine(
        llm=MockLLM(is_chat_model=True), similarity_top_k=candidates, node_postprocessors=[reranker]
    )
    return engine.retrieve(QueryBundle(question))


def _found(rank: int, node: "NodeWithScore") -> FoundPage:
    from llama_index_ziprerank import nodes

    metadata = node.metadata
    return FoundPage(
        rank=rank,
        rank_before=metadata[nodes.FIRST_STAGE_RANK],
        file=metadata.get(nodes.FILE_NAME, node.node_id),
        page_label=metadata.get(nodes.PAGE_LABEL),
        page_number=metadata.get(nodes.PAGE_NUMBER),
        score=node.get_score(),
        logit=metadata[nodes.LOGIT],
        first_stage_score=metadata[nodes.FIRST_STAGE_SCORE],
    )


def _print_table(question: str, pages: list[FoundPage]) -> None:
    table = Table(title=question, title_justify="left", box=None)
    for name in ("rank", "page", "score", "rank before"):
        table.add_column(name, justify="right")
    table.add_column("file", overflow="fold")
    for page in pages:
        table.add_row(str(page.rank), _page_name(page), f"{page.score:.3f}", str(page.rank_before), page.file)
    out.print(table)


def _page_name(page: FoundPage) -> str:
    """The number printed on the page; where that differs, its position in the file too."""
    if page.page_number is None or page.page_label == str(page.page_number):
        return page.page_label or "-"
    return f"{page.page_label} (PDF {page.page_number})"


def _draw(question: str, pages: list[FoundPage], nodes: "list[NodeWithScore]") -> Image.Image:
    from llama_index_ziprerank.nodes import page_image_or_rendered_text
    from llama_index_ziprerank.pages.contact_sheet import Tile, contact_sheet

    tiles = [
        Tile(
            page_image_or_rendered_text(node.node),
            page.rank,
            page.rank_before,
            f"page {_page_name(page)} · {page.score:.3f} · {page.file}",
        )
        for page, node in zip(pages, nodes, strict=True)
    ]
    return contact_sheet(question, tiles)
