"""`python -m llama_index_ziprerank.training.nano.build`: everything that makes nano, in one resumable command.

Corpus, tokenizer, stage 0 (reading), one look at every page, the first stage, the ranker, written and then trained on
lists, two checkpoints. Each part keeps what it finished in the working folder; run again, on this machine or another,
it goes on from there.
"""

import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import torch
import typer
from colpali_engine.models import ColQwen3Processor
from safetensors.torch import load_model
from transformers import PreTrainedTokenizerFast, Qwen3VLForConditionalGeneration

from llama_index_ziprerank.training.nano import (
    corpus,
    export,
    labels,
    lists,
    manuals,
    pairs,
    ranking,
    reading,
    seeing,
)
from llama_index_ziprerank.training.nano import retrieval as first_stage
from llama_index_ziprerank.training.nano.synthetic import draw_pages
from llama_index_ziprerank.training.nano.tokenizer import train_tokenizer

SYNTHETIC_PAGES = 1_900
SEEN_PAGES = 2_000
READING_SHARE, RETRIEVAL_SHARE, RANKING_SHARE = 0.6, 0.25, 0.15
"""How the time for training is divided."""

WORN_SHARE = 0.6
"""How many of the manuals look scanned in the ranker's lists."""

BATCH_ON_GPU = 64
"""How many times as many patches a GPU reads in a step as a CPU does."""

CROPS_GOING_ON = ((0.75, 256, 384, 1536), (1.0, 512, 768, 3072))
"""Eyes that can read need no small crops first."""


@dataclass(frozen=True)
class Plan:
    """What is made, and on what."""

    work: Path
    """Folder of all that is between."""
    minutes: float
    """For training, all stages together."""
    device: str
    packages: Sequence[str] = tuple(manuals.TRAINING_MANUALS)
    """Manuals to learn from, by their Debian packages."""
    pages_a_manual: int = 150
    set_pages: int = SYNTHETIC_PAGES
    """Pages of text set in many fonts."""
    start: Path | None = None
    """A nano reranker whose eyes and words reading goes on from."""

    def __post_init__(self) -> None:
        if unknown := sorted(set(self.packages) - set(manuals.TRAINING_MANUALS)):
            raise ValueError(f"Manuals are among {', '.join(manuals.TRAINING_MANUALS)}; got {', '.join(unknown)}.")
        if self.start and not (self.start / "config.json").exists():
            raise ValueError(f"{self.start} holds no checkpoint to start from. Name a nano reranker's folder.")


def build_nano(plan: Plan, output: Path) -> None:
    """Make both checkpoints in `output`."""
    torch.manual_seed(0)
    torch.set_flush_denormal(True)  # sharp attention is full of them, and a CPU takes long over each
    if plan.device != "cpu":
        torch.set_float32_matmul_precision("high")
    work = plan.work
    pages = build_corpus(plan)
    tokenizer = _tokenizer(plan, pages)
    reader = _read(plan, pages, tokenizer)
    chosen = seeing.sample_pages(pages, SEEN_PAGES)
    norm = seeing.visual_norm(reader, tokenizer, chosen[:: max(1, len(chosen) // 40)])
    eyes = export.build_eyes(reader, tokenizer, norm).to(plan.device)
    seeing.see_pages(eyes, tokenizer, chosen, work / "seen")
    seen = seeing.load_seen(work / "corpus", work / "seen")
    worn = see_worn(plan, eyes, tokenizer, chosen)
    maker = pairs.PairMaker(seen)
    processor = export.build_processor(tokenizer)

    rarity = seeing.piece_rarity(seen, tokenizer)
    retriever = export.build_retriever(reader, tokenizer, norm, rarity)
    export.save_retriever(retriever, processor, output / "retriever")
    own = ColQwen3Processor.from_pretrained(output / "retriever")
    config = first_stage.RetrievalConfig(RETRIEVAL_SHARE * plan.minutes)
    first_stage.train_retrieval(retriever.to(plan.device), own, maker, config, work / "retrieval")
    export.save_retriever(retriever.cpu(), processor, output / "retriever")

    principal = first_stage.principal_directions(retriever, own, maker)
    ranker = export.build_reranker(retriever, tokenizer, principal)
    export.save_reranker(ranker, processor, output / "reranker")
    listed = lists.list_manuals(
        fetch_pdfs(plan), shown_in_lists(seen, worn), retriever.to(plan.device), own, work / "lists"
    )
    if not listed:
        print("No manual has questions of its own and enough pages: the ranker stays as written.", flush=True)
        return
    ranking_config = ranking.RankingConfig(RANKING_SHARE * plan.minutes)
    ranking.train_ranking(ranker.to(plan.device), lists.ListMaker(listed, processor), ranking_config, work / "ranking")
    export.save_reranker(ranker.cpu(), processor, output / "reranker")


def see_worn(
    plan: Plan, eyes: Qwen3VLForConditionalGeneration, tokenizer: PreTrainedTokenizerFast, paths: list[Path]
) -> list[pairs.SeenPage]:
    """Some manuals once more, as if scanned."""
    names, folder = seeing.worn_manuals(paths, WORN_SHARE), plan.work / "worn"
    seeing.see_pages(eyes, tokenizer, [path for path in paths if path.parent.name in names], folder, worn=True)
    return seeing.load_seen(plan.work / "corpus", folder)


def shown_in_lists(seen: list[pairs.SeenPage], worn: list[pairs.SeenPage]) -> list[pairs.SeenPage]:
    """What the lists show: a manual is worn as a whole or not at all."""
    names = {page.words.manual for page in worn}
    return worn + [page for page in seen if page.words.manual not in names]


def fetch_pdfs(plan: Plan) -> list[Path]:
    """Download the training manuals, unless they are there."""
    names = {package: manuals.TRAINING_MANUALS[package] for package in plan.packages}
    return [manuals.fetch_file(package, name, plan.work / "debian") for package, name in names.items()]


def build_corpus(plan: Plan) -> list[Path]:
    """Fetch the training manuals and render their pages."""
    folder = plan.work / "corpus"
    corpus.build_corpus(fetch_pdfs(plan), folder, most_pages=plan.pages_a_manual, processes=_cores())
    return corpus.corpus_paths(folder)


def _tokenizer(plan: Plan, paths: list[Path]) -> PreTrainedTokenizerFast:
    folder = plan.start or plan.work / "tokenizer"
    if not folder.is_dir():  # never what to start from: the plan has seen that
        train_tokenizer(map(corpus.load_text, paths)).save_pretrained(folder)
    return PreTrainedTokenizerFast.from_pretrained(folder)


def _read(plan: Plan, paths: list[Path], tokenizer: PreTrainedTokenizerFast) -> reading.Reader:
    """Stage 0, or what it left when it is done; on the CPU."""
    reader = export.reader_from_checkpoint(plan.start, tokenizer) if plan.start else export.build_reader(tokenizer)
    folder = plan.work / "reading"
    if (folder / "done").exists():
        load_model(reader, folder / "reader.safetensors")
        return reader
    texts = [text for text in map(corpus.load_text, paths) if len(text) > 500]
    drawn = list(draw_pages(texts, manuals.fetch_fonts(plan.work / "debian"), plan.set_pages))
    labelled = labels.label_pages(paths, drawn, tokenizer, _cores())
    on_gpu = plan.device != "cpu"
    config = reading.ReadingConfig(
        minutes=READING_SHARE * plan.minutes,
        compiled=not on_gpu and shutil.which("g++") is not None,
        batch=BATCH_ON_GPU if on_gpu else 1,
        negatives=None if on_gpu else reading.ReadingConfig.negatives,
        crops=CROPS_GOING_ON if plan.start else reading.ReadingConfig.crops,
        words_from=0.0 if plan.start else reading.ReadingConfig.words_from,
    )
    reading.train_reading(reader, labelled, config, folder, plan.device)
    (folder / "done").touch()
    return reader.cpu()


def _cores() -> int:
    return os.cpu_count() or 1


def main(
    minutes: Annotated[float, typer.Option(envvar="NANO_MINUTES", help="Time for training, all stages.")] = 120.0,
    work: Annotated[Path, typer.Option(help="Folder of the corpus and all that is between.")] = Path(".cache/nano"),
    to: Annotated[Path, typer.Option(help="Folder of the two checkpoints.")] = Path(".cache/nano/output"),
    device: Annotated[str, typer.Option(help="cuda or cpu  [default: cuda where there is one]")] = "",
    packages: Annotated[
        str, typer.Option("--manuals", help="Debian packages of manuals, between commas  [default: all]")
    ] = "",
    pages_a_manual: Annotated[int, typer.Option(min=1, help="Most pages of a manual.")] = 150,
    set_pages: Annotated[int, typer.Option(min=1, help="Pages of text set in many fonts.")] = SYNTHETIC_PAGES,
    start: Annotated[Path | None, typer.Option(help="A nano reranker whose eyes reading goes on from.")] = None,
) -> None:
    """Make nano: fetch manuals, learn to read, to find and to rank. Run again, it goes on where it stopped."""
    chosen = [name.strip() for name in packages.split(",") if name.strip()] or list(manuals.TRAINING_MANUALS)
    where = device or ("cuda" if torch.cuda.is_available() else "cpu")
    try:
        plan = Plan(work, minutes, where, chosen, pages_a_manual, set_pages, start)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from error
    build_nano(plan, to)


if __name__ == "__main__":
    typer.run(main)
