"""Fine-tuning from PDF files to a checkpoint and a table: `finetune(settings, ...)`."""

import errno
import json
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from llama_index_ziprerank.compat import run_async
from llama_index_ziprerank.retrieval.encoder import MultiVectorEncoder
from llama_index_ziprerank.training.cache import FeatureCache
from llama_index_ziprerank.training.card import model_card
from llama_index_ziprerank.training.finetune.documents import (
    Document,
    Question,
    Track,
    read_document,
    ticker,
    write_whole,
)
from llama_index_ziprerank.training.finetune.first_stage import Ranked, rank_pages
from llama_index_ziprerank.training.finetune.lists import label_by_text, teacher_query, write_lists
from llama_index_ziprerank.training.finetune.measure import FEATURES, Figures, means, measure, page_opener, rerank
from llama_index_ziprerank.training.finetune.plan import Clock, StopInTime, drawn, planned
from llama_index_ziprerank.training.finetune.questions import Asked, hold_out, numbered, written_questions
from llama_index_ziprerank.training.finetune.settings import (
    WORK,
    Helpers,
    OpenTeacher,
    Settings,
    check_output,
    stage2_recipe,
    time_limit,
)
from llama_index_ziprerank.training.finetune.text_teacher import TextTeacher, candidate_words
from llama_index_ziprerank.training.hold import hold
from llama_index_ziprerank.training.metrics import metrics_table
from llama_index_ziprerank.training.recipes import Stage2
from llama_index_ziprerank.training.run import train
from llama_index_ziprerank.training.setup import flush_denormals
from llama_index_ziprerank.training.teacher import LabelFile, TeacherQuery, label_queries


@dataclass(frozen=True)
class Finetuned:
    """What comes out."""

    folder: Path
    """The checkpoint: `ZipRerankPostprocessor(model=folder)` takes it."""
    figures: dict[str, Figures]
    """Of each system, each held-out question's metrics."""
    lists: int
    """Training lists."""
    questions: int
    """Held-out questions."""


def finetune(
    pdfs: Sequence[Path],
    settings: Settings,
    track: Track,
    helpers: Helpers | None = None,
    say: Callable[[str], object] = print,
) -> Finetuned:
    """Fine-tune a reranker on PDF files; where an earlier run was interrupted, go on from there.

    `say` is told what will be done and how long that takes.

    Raises:
        PageError: when a PDF cannot be read or is too short.
        FileNotFoundError: when a model does not exist.
        ValueError: when no questions can be made, a setting cannot be used, or the output folder holds other work, or
            that of another process.
        TeacherStoppedError: when the model that sees pages fails too often.
        CheckpointError, OSError: when something cannot be written.
    """
    helpers = helpers or Helpers()
    try:
        with check_output(pdfs, settings, helpers).open("r+b") as told:
            hold(told, settings.output)
            return _finetune(pdfs, settings, track, helpers, say)
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        free = shutil.disk_usage(settings.output).free / 1e6
        raise OSError(
            f"The disk of {str(settings.output)!r} is full ({free:,.0f} MB are free). What was finished lies there. "
            "Make room, then run the same command again."
        ) from error


def _finetune(
    pdfs: Sequence[Path],
    settings: Settings,
    track: Track,
    helpers: Helpers,
    say: Callable[[str], object],
) -> Finetuned:
    flush_denormals()
    clock = Clock(time_limit(settings))
    work = settings.output / WORK
    image = page_opener(work / "pages")
    documents = [read_document(path, work / "pages", track) for path in pdfs]
    learned, held = hold_out(_questions(documents, settings, helpers, track), settings.held_out, settings.seed)
    rankings = _first_stage(documents, [*learned, *held], settings, track)
    recipe = stage2_recipe(settings)
    lists = _label(learned, rankings, recipe.max_candidates, work, helpers, track)

    cache = FeatureCache(FEATURES)
    pages = sum(len(document.labels.candidates) for document in documents)
    plan = planned(work / "plan.json", clock, recipe, held, rankings, image, cache, pages)
    say(plan.described(len(held), lists, recipe.batch_size * recipe.gradient_accumulation))
    held = drawn(held, plan.questions, settings.seed)
    figures = _without_training(held, rankings, documents)
    before = work / "before.json"
    if not before.is_file():
        started = time.monotonic()
        orders = rerank(settings.model, held, rankings, image, recipe, cache, track)
        write_whole(before, json.dumps({"seconds": time.monotonic() - started, "figures": measure(held, orders)}))
    told = json.loads(before.read_text(encoding="utf-8"))
    figures["before training"] = told["figures"]
    trained = train(replace(recipe, max_steps=plan.steps), [StopInTime(clock, told["seconds"])])
    if trained.steps < plan.steps:
        say(f"The time was up after {trained.steps} of {plan.steps} steps. The same command, run again, goes on.")
    if recipe.train_vision:
        cache = FeatureCache(FEATURES)  # another tower sees other things
    orders = rerank(str(trained.folder), held, rankings, image, recipe, cache, track)
    figures["after training"] = measure(held, orders)
    result = Finetuned(trained.folder, figures, lists, len(held))
    _write_card(result, recipe, documents, helpers, trained.steps)
    return result


def table(result: Finetuned) -> str:
    """Write the means of all systems as a Markdown table, in percent."""
    return metrics_table({system: means(figures) for system, figures in result.figures.items()})


def _questions(documents: Sequence[Document], settings: Settings, helpers: Helpers, track: Track) -> list[Asked]:
    questions: list[Asked] = []
    for document in documents:
        found: Sequence[Question] = document.labels.questions
        if helpers.open_teacher is not None:
            found = run_async(_written(document, settings, helpers.open_teacher, track))
        questions += numbered(document, found)
    if len(questions) < 2:
        raise ValueError(
            f"{len(questions)} questions can be made of the outlines and indexes of "
            f"{', '.join(document.name for document in documents)}. Configure an LLM that writes questions, or pass "
            "documents with bookmarks."
        )
    return questions


async def _written(
    document: Document,
    settings: Settings,
    open_teacher: OpenTeacher,
    track: Track,
) -> list[Question]:
    work = settings.output / WORK
    tick = ticker(track, f"{document.name}: questions", len(document.labels.candidates))
    async with open_teacher() as teacher:
        return await written_questions(
            document,
            teacher,
            page_opener(work / "pages"),
            work / f"questions-{document.name}.jsonl",
            count=settings.questions_per_page,
            on_done=tick,
        )


def _first_stage(
    documents: Sequence[Document], questions: Sequence[Asked], settings: Settings, track: Track
) -> dict[str, Ranked]:
    work = settings.output / WORK
    encoder = MultiVectorEncoder.from_pretrained(settings.retriever)
    rankings: dict[str, Ranked] = {}
    for document in documents:
        asked = [question for question in questions if question.document is document]
        rankings |= rank_pages(document, asked, encoder, page_opener(work / "pages"), work / "vectors", track)
    return rankings


def _label(
    questions: Sequence[Asked],
    rankings: dict[str, Ranked],
    most: int,
    work: Path,
    helpers: Helpers,
    track: Track,
) -> int:
    """Write the training lists, unless they are there: what is being learned must not change. Return how many."""
    lists = work / "lists.jsonl"
    if lists.is_file() and (count := lists.read_text(encoding="utf-8").count("\n")):
        return count
    queries = [teacher_query(question, rankings[question.id], most) for question in questions]
    path = work / "labels.jsonl"
    with LabelFile(path) as labels:
        if helpers.open_teacher is None:
            documents = {question.document.name: question.document for question in questions}
            teachers = {name: TextTeacher(document, helpers.embed) for name, document in documents.items()}
            label_by_text(questions, queries, labels, teachers)
        else:
            run_async(_label_by_model(queries, work, labels, helpers.open_teacher, track))
    count = write_lists(path, lists, work / "pages")
    if not count:
        raise ValueError("The teacher ordered no list. Look at the messages above.")
    return count


async def _label_by_model(
    queries: Sequence[TeacherQuery],
    work: Path,
    labels: LabelFile,
    open_teacher: OpenTeacher,
    track: Track,
) -> None:
    image = page_opener(work / "pages")
    async with open_teacher() as teacher:
        tick = ticker(track, "teacher", len(queries))
        await label_queries(queries, lambda page: image(str(page)), teacher, labels, tick)


def _without_training(
    questions: Sequence[Asked], rankings: dict[str, Ranked], documents: Sequence[Document]
) -> dict[str, Figures]:
    """Measure BM25, where all documents have a text layer, and the first stage."""
    figures: dict[str, Figures] = {}
    if all(any(candidate_words(document)) for document in documents):
        by_words = {document.name: TextTeacher(document) for document in documents}
        bm25 = {
            question.id: by_words[question.document.name].by_words(question.text, question.document.labels.candidates)
            for question in questions
        }
        figures["BM25"] = measure(questions, bm25)
    first = {question.id: [page for page, _ in rankings[question.id]] for question in questions}
    return {**figures, "first stage": measure(questions, first)}


def _write_card(result: Finetuned, recipe: Stage2, documents: Sequence[Document], helpers: Helpers, steps: int) -> None:
    names = ", ".join(f"`{document.name}`" for document in documents)
    data = f"{result.lists} questions about {names}, ordered by {helpers.name}."
    figures = (
        f"Percent, on {result.questions} held-out questions about the same documents, under headings that were not "
        f"trained on; all pages of a document compete. Other documents may give other figures.\n\n{table(result)}"
    )
    card = model_card(recipe, data, steps, figures)
    write_whole(result.folder / "README.md", card)
