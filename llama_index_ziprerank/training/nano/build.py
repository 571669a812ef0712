"""`python -m llama_index_ziprerank.training.nano.build`: everything that makes nano, in one resumable command.

Corpus, tokenizer, stage 0 (reading), one look at every page, the first stage, the written ranker, two checkpoints. Each
part keeps what it finished in the working folder; run again, on this machine or another, it goes on from there.
"""

import shutil
from pathlib import Path
from typing import Annotated

import torch
import typer
from colpali_engine.models import ColQwen3Processor
from safetensors.torch import load_model
from transformers import PreTrainedTokenizerFast

from llama_index_ziprerank.training.nano import corpus, export, labels, manuals, pairs, reading, seeing
from llama_index_ziprerank.training.nano import retrieval as first_stage
from llama_index_ziprerank.training.nano.synthetic import set_pages
from llama_index_ziprerank.training.nano.tokenizer import train_tokenizer

PAGES_A_MANUAL = 150
SYNTHETIC_PAGES = 700
SEEN_PAGES = 2_000
READING_SHARE, RETRIEVAL_SHARE = 0.7, 0.3
"""How the time for training is divided."""


def build_nano(work: Path, output: Path, minutes: float) -> None:
    """Make both checkpoints in `output`, spending `minutes` on training; `work` keeps all that is between."""
    torch.manual_seed(0)
    torch.set_flush_denormal(True)  # sharp attention is full of them, and a CPU takes long over each
    pages = build_corpus(work)
    tokenizer = _tokenizer(work, pages)
    reader = _read(work, pages, tokenizer, READING_SHARE * minutes)
    chosen = seeing.sample_pages(pages, SEEN_PAGES)
    norm = seeing.visual_norm(reader, tokenizer, chosen[:: max(1, len(chosen) // 40)])
    seeing.see_pages(export.build_eyes(reader, tokenizer, norm), tokenizer, chosen, work / "seen")
    seen = seeing.load_seen(work / "corpus", work / "seen")
    maker = pairs.PairMaker(seen)
    processor = export.build_processor(tokenizer)

    rarity = seeing.piece_rarity(seen, tokenizer)
    retriever = export.build_retriever(reader, tokenizer, norm, rarity)
    export.save_retriever(retriever, processor, output / "retriever")
    own = ColQwen3Processor.from_pretrained(output / "retriever")
    first_stage.train_retrieval(
        retriever, own, maker, first_stage.RetrievalConfig(RETRIEVAL_SHARE * minutes), work / "retrieval"
    )
    export.save_retriever(retriever, processor, output / "retriever")

    principal = first_stage.principal_directions(retriever, own, maker)
    ranker = export.build_reranker(retriever, tokenizer, principal)
    export.save_reranker(ranker, processor, output / "reranker")


def build_corpus(work: Path) -> list[Path]:
    """Fetch the training manuals and render their pages."""
    pdfs = [manuals.fetch_file(package, name, work / "debian") for package, name in manuals.TRAINING_MANUALS.items()]
    corpus.build_corpus(pdfs, work / "corpus", most_pages=PAGES_A_MANUAL)
    return corpus.corpus_paths(work / "corpus")


def _tokenizer(work: Path, paths: list[Path]) -> PreTrainedTokenizerFast:
    folder = work / "tokenizer"
    if not folder.is_dir():
        train_tokenizer(corpus.load_page(path).text for path in paths).save_pretrained(folder)
    return PreTrainedTokenizerFast.from_pretrained(folder)


def _read(work: Path, paths: list[Path], tokenizer: PreTrainedTokenizerFast, minutes: float) -> reading.Reader:
    """Stage 0, or what it left when it is done."""
    reader = export.build_reader(tokenizer)
    folder = work / "reading"
    if (folder / "done").exists():
        load_model(reader, folder / "reader.safetensors")
        return reader
    real = [corpus.load_page(path) for path in paths]
    texts = [page.text for page in real if len(page.codes) > 500]
    synthetic = set_pages(texts, manuals.fetch_fonts(work / "debian"), SYNTHETIC_PAGES)
    labelled = [labels.label_page(page, tokenizer) for page in (*real, *synthetic)]
    compiled = torch.cuda.is_available() or shutil.which("g++") is not None
    reading.train_reading(reader, labelled, reading.ReadingConfig(minutes=minutes, compiled=compiled), folder)
    (folder / "done").touch()
    return reader


def main(
    minutes: Annotated[float, typer.Option(envvar="NANO_MINUTES", help="Time for training, all stages.")] = 120.0,
    work: Annotated[Path, typer.Option(help="Folder of the corpus and all that is between.")] = Path(".cache/nano"),
    to: Annotated[Path, typer.Option(help="Folder of the two checkpoints.")] = Path(".cache/nano/output"),
) -> None:
    """Make nano: fetch manuals, learn to read, to find and to rank. Run again, it goes on where it stopped."""
    build_nano(work, to, minutes)


if __name__ == "__main__":
    typer.run(main)
