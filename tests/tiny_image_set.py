"""A small BEIR-like set of page images: six pages told apart by their grey, three queries, on disk in many ways."""

import json
from io import BytesIO
from pathlib import Path
from typing import Any

import datasets
from PIL import Image

PAGES = [f"page {number}" for number in range(6)]
QUERIES = {"q1": "the darkest page", "q2": "a light page", "q3": "nobody knows"}
QRELS = [("q1", "page 0", 1), ("q2", "page 5", 2), ("q2", "page 4", 1), ("q3", "page 1", 0)]
"""q3 has no relevant page."""


def page_image(number: int, brighter: int = 0) -> Image.Image:
    grey = 40 * number + brighter
    return Image.new("RGB", (64, 64), (grey, grey, grey))


def write_image_set(folder: Path, form: str, *, brighter: int = 0) -> Path:
    """Write the set as "saved", "split", "parquet", "jsonl", "tsv" (images as files) or "trec" (the same)."""
    folder.mkdir(parents=True)
    corpus = [{"corpus-id": page, "image": _png(number, brighter)} for number, page in enumerate(PAGES)]
    queries = [{"query-id": query, "query": text} for query, text in QUERIES.items()]
    qrels = [{"query-id": query, "corpus-id": page, "score": grade} for query, page, grade in QRELS]
    if form in {"saved", "split", "parquet"}:
        for name, rows in (("corpus", corpus), ("queries", queries), ("qrels", qrels)):
            _write_table(folder, name, rows, form)
        return folder
    (folder / "corpus").mkdir()
    for number, page in enumerate(PAGES):
        page_image(number, brighter).save(folder / "corpus" / f"{page}.png")
    if form == "tsv":
        (folder / "queries.tsv").write_text(_tsv(queries))
        (folder / "qrels.tsv").write_text(_tsv(qrels))
        return folder
    (folder / "queries.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in queries))
    if form == "trec":
        lines = (f"{query} 0 {page.replace(' ', '%20')} {grade}\n" for query, page, grade in QRELS)
        (folder / "qrels.trec").write_text("".join(lines))
    else:
        underscored = [{key.replace("-", "_"): value for key, value in row.items()} for row in qrels]
        (folder / "qrels.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in underscored))
    return folder


def _write_table(folder: Path, name: str, rows: list[dict[str, Any]], form: str) -> None:
    table = datasets.Dataset.from_list(rows)
    if name == "corpus":
        table = table.cast_column("image", datasets.Image())
    if form == "parquet":
        (folder / name).mkdir()
        table.to_parquet(folder / name / "test-00000-of-00001.parquet")
    elif form == "split":
        datasets.DatasetDict({"test": table, "train": table.select([0])}).save_to_disk(folder / name)
    else:
        table.save_to_disk(folder / name)


def _tsv(rows: list[dict[str, Any]]) -> str:
    lines = ["\t".join(rows[0]), *("\t".join(str(value) for value in row.values()) for row in rows)]
    return "".join(f"{line}\n" for line in lines)


def _png(number: int, brighter: int) -> dict[str, Any]:
    buffer = BytesIO()
    page_image(number, brighter).save(buffer, "PNG")
    return {"bytes": buffer.getvalue(), "path": None}
