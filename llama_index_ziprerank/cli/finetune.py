"""`ziprerank finetune`: a reranker for one's own PDF files, in one command."""

import contextlib
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from llama_index_ziprerank.checkpoints import EMBEDDED
from llama_index_ziprerank.cli.console import err, hide_weight_bars, needs_extra, out, track

if TYPE_CHECKING:
    from llama_index_ziprerank.training.finetune.run import Finetuned
    from llama_index_ziprerank.training.finetune.settings import Helpers
    from llama_index_ziprerank.training.teacher import Teacher


def finetune(
    pdfs: Annotated[list[Path], typer.Argument(metavar="PDF...", help="What to learn from.", show_default=False)],
    output: Annotated[
        Path, typer.Option(metavar="DIR", help="Folder of the checkpoint; a second run continues there.")
    ],
    model: Annotated[str, typer.Option(metavar="NAME", help="Reranker to start from.")] = EMBEDDED,
    retriever: Annotated[str, typer.Option(metavar="NAME", help="First stage that finds the candidates.")] = EMBEDDED,
    llm: Annotated[
        str | None,
        typer.Option(
            metavar="NAME", help="Model that sees pages: writes questions and is the teacher  [default: text layer]"
        ),
    ] = None,
    api_base: Annotated[
        str | None, typer.Option(metavar="URL", help="Its server with OpenAI's protocol, with /v1  [default: OpenAI]")
    ] = None,
    embeddings: Annotated[
        str | None,
        typer.Option(
            metavar="NAME", help="Model of sentence-transformers that helps BM25 to teach, where no LLM is named."
        ),
    ] = None,
    questions_per_page: Annotated[int, typer.Option(metavar="N", min=1, help="That the LLM writes.")] = 3,
    held_out: Annotated[
        float, typer.Option(metavar="SHARE", help="Part of the questions, by heading, that is measured on.")
    ] = 0.25,
    epochs: Annotated[float | None, typer.Option(metavar="N", help="Passes over the lists  [default: 3]")] = None,
    minutes: Annotated[
        float | None,
        typer.Option(
            metavar="N", help="Time limit, 0: none; fewer steps, fewer measured questions  [default: 15 on a CPU]"
        ),
    ] = None,
    learning_rate: Annotated[
        float | None, typer.Option(metavar="RATE", help="Highest learning rate  [default: 1e-4; 1e-5 for nano]")
    ] = None,
    lora_rank: Annotated[
        int | None, typer.Option(metavar="N", help="Of the adapters; 0 trains all weights  [default: 16]")
    ] = None,
    recipe: Annotated[
        Path | None, typer.Option(metavar="FILE", help="YAML or JSON with any fields of `ziprerank train stage2`.")
    ] = None,
    seed: Annotated[int, typer.Option(metavar="N", help="For the draws.")] = 0,
) -> None:
    """Fine-tune a reranker on your own PDF files.

    Pages become questions (of outline and index, or by an LLM), the first stage finds candidates, a teacher orders
    them, stage 2 learns it. A table compares before and after on questions whose headings were held out.
    """
    hide_weight_bars()
    given = {"epochs": epochs, "learning_rate": learning_rate, "lora_rank": lora_rank}
    with needs_extra("training"):
        from llama_index_ziprerank.training.finetune.run import finetune as run
        from llama_index_ziprerank.training.finetune.run import table
        from llama_index_ziprerank.training.finetune.settings import Settings

        settings = Settings(
            output,
            model,
            retriever,
            held_out,
            questions_per_page,
            {**_fields(recipe), **{name: value for name, value in given.items() if value is not None}},
            seed,
            minutes,
        )
        helpers = _helpers(llm, api_base, embeddings)
        err.print(f"Teacher: {helpers.name}.", soft_wrap=True)
        with contextlib.redirect_stdout(sys.stderr):  # the Trainer's log is progress, not a result
            result = run(pdfs, settings, track, helpers, lambda told: err.print(told, soft_wrap=True))
    out.print(f"{result.lists} lists learned; percent, {result.questions} held-out questions", soft_wrap=True)
    out.print(table(result), soft_wrap=True)
    out.print(_gain(result), soft_wrap=True)
    err.print(f"The reranker is in {result.folder}.", soft_wrap=True)


def _fields(recipe: Path | None) -> dict[str, Any]:
    if recipe is None:
        return {}
    from llama_index_ziprerank.training.options import read_config
    from llama_index_ziprerank.training.recipes import Stage2

    return read_config(Stage2, str(recipe))


def _helpers(llm: str | None, api_base: str | None, embeddings: str | None) -> "Helpers":
    from llama_index_ziprerank.training.finetune.settings import Helpers
    from llama_index_ziprerank.training.finetune.text_teacher import sentence_embedder

    if llm is not None and embeddings is not None:
        raise ValueError("An LLM teaches alone: pass --llm or --embeddings, not both.")
    if embeddings is not None:
        return Helpers(
            f"the text layer, BM25 and sentence embeddings of {embeddings}", None, sentence_embedder(embeddings)
        )
    if llm is None:
        return Helpers()
    from llama_index_ziprerank.teachers import LLMTeacher, openai_compatible_llm, seconds_before_retry
    from llama_index_ziprerank.training.teacher import Teacher

    @contextlib.asynccontextmanager
    async def open_teacher() -> "AsyncIterator[Teacher]":
        async with openai_compatible_llm(llm, api_base=api_base) as model:
            yield Teacher(LLMTeacher(model), retry_rule=seconds_before_retry)

    return Helpers(llm, open_teacher)


def _gain(result: "Finetuned") -> str:
    """Say what the training changed, with what chance could do."""
    from llama_index_ziprerank.evaluation.intervals import bootstrap_interval

    before, after = result.figures["before training"], result.figures["after training"]
    gains = [100 * (after[question]["recall@1"] - before[question]["recall@1"]) for question in before]
    low, high = bootstrap_interval(gains)
    mean = sum(gains) / len(gains)
    told = f"recall@1 changed by {mean:+.1f} points, 95 % interval [{low:+.1f}, {high:+.1f}]"
    return f"{told}: it ranks worse now. Keep the model that it began with." if high < 0 else told
