import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as parquet
import pytest
from tiny_mmdocir import LAYOUTS, PAGES, ROW_ORDER, write_mmdocir

from llama_index_ziprerank.evaluation.mmdocir.annotations import Box, candidate_id, read_annotations
from llama_index_ziprerank.evaluation.mmdocir.benchmark import Settings, evaluate_mmdocir
from llama_index_ziprerank.evaluation.mmdocir.rows import open_rows, stream_spans


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_mmdocir(tmp_path / "mmdocir")


def test_annotations_are_read_as_published(folder: Path) -> None:
    report, laws, _ = read_annotations(folder / "MMDocIR_annotations.jsonl")

    assert (report.name, report.domain, report.page_rows, report.layout_rows) == (
        "a report.pdf", "Academic paper", (3, 6), (2, 6),
    )  # fmt: skip
    assert [question.id for question in report.questions] == ["a%20report.pdf:q0", "a%20report.pdf:q1"]
    assert report.questions[1].pages == (0, 3)
    assert laws.questions[0].layouts == (Box(2, (20, 20, 30, 40)),)
    assert candidate_id(report.name, "layout", 3) == "a%20report.pdf:l3"


@pytest.mark.parametrize("row_group_size", [1, 2, 5, 100])
def test_a_document_has_its_rows_however_the_file_is_cut(tmp_path: Path, row_group_size: int) -> None:
    folder = write_mmdocir(tmp_path, row_group_size=row_group_size)
    spans = [(3, 6), (7, 8)]

    report, brochure = stream_spans(open_rows(folder / "MMDocIR_pages.parquet", "page", spans), "page", spans)

    assert [row["doc_name"] for row in report] == ["a report.pdf"] * PAGES["a report.pdf"]
    assert [row["doc_name"] for row in brochure] == ["brochure.pdf"] * 2


def test_layouts_come_with_their_page_and_box(folder: Path) -> None:
    spans = [(0, 1)]
    [rows] = stream_spans(open_rows(folder / "MMDocIR_layouts.parquet", "layout", spans), "layout", spans)

    assert [(row["page_id"], row["bbox"]) for row in rows] == LAYOUTS[ROW_ORDER[0]]


def test_a_missing_file_is_named_with_where_to_get_it(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="github.com/MMDocRAG/MMDocIR"):
        read_annotations(tmp_path / "MMDocIR_annotations.jsonl")
    with pytest.raises(FileNotFoundError, match="MMDocIR_pages.parquet from huggingface.co"):
        open_rows(tmp_path / "MMDocIR_pages.parquet", "page", [])


@pytest.mark.parametrize("line", ["[]", '{"doc_name": "a"}', "nothing", '{"doc_name": "a", "domain": "b"}'])
def test_a_line_that_is_no_document_is_named(folder: Path, line: str) -> None:
    path = folder / "MMDocIR_annotations.jsonl"
    path.write_text(f"{path.read_text()}{line}\n")

    with pytest.raises(ValueError, match="line 4 is no document of MMDocIR"):
        read_annotations(path)


def test_a_column_too_few_is_named_with_those_that_are_there(tmp_path: Path) -> None:
    parquet.write_table(pa.table({"doc_name": ["a"], "image": [b""]}), tmp_path / "pages.parquet")

    with pytest.raises(ValueError, match="lacks the column image_binary; it has doc_name, image"):
        open_rows(tmp_path / "pages.parquet", "page", [])


def test_another_kind_of_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "pages.parquet").write_text("not parquet at all")

    with pytest.raises(ValueError, match="cannot be read as parquet"):
        open_rows(tmp_path / "pages.parquet", "page", [])


def test_files_of_two_versions_are_refused(folder: Path) -> None:
    with pytest.raises(ValueError, match="has 9 rows, the annotations name row 9"):
        open_rows(folder / "MMDocIR_pages.parquet", "page", [(8, 9)])
    path = folder / "MMDocIR_annotations.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    rows[0]["page_indices"], rows[1]["page_indices"] = rows[1]["page_indices"], rows[0]["page_indices"]
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))

    with pytest.raises(ValueError, match="should be of 'a report.pdf', found 'laws.pdf'"):
        evaluate_mmdocir(folder, Settings(), lambda images, queries, top_k: {}, folder / "to")
