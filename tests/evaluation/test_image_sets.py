from pathlib import Path

import datasets
import pytest
from tiny_image_set import QUERIES, page_image, write_image_set

from llama_index_ziprerank.evaluation.image_sets import load_image_set
from llama_index_ziprerank.pages.page import PageError


@pytest.fixture(autouse=True)
def quiet_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


@pytest.mark.parametrize("form", ["saved", "split", "parquet", "jsonl", "tsv", "trec"])
def test_a_set_is_the_same_however_it_lies_on_disk(tmp_path: Path, form: str) -> None:
    found = load_image_set(str(write_image_set(tmp_path / "set", form)))

    assert found.queries == {query: QUERIES[query] for query in ("q1", "q2")}  # q3 has no relevant page
    assert found.qrels == {"q1": {"page%200": 1}, "q2": {"page%205": 2, "page%204": 1}}
    assert list(found.images) == [f"page%20{number}" for number in range(6)]
    for number, (page, image) in enumerate(found.pages()):
        assert page == f"page%20{number}"
        assert (image.mode, image.getpixel((0, 0))) == ("RGB", page_image(number).getpixel((0, 0)))


def test_a_split_is_chosen_by_name(tmp_path: Path) -> None:
    folder = write_image_set(tmp_path / "set", "split")

    assert list(load_image_set(str(folder), "train").images) == ["page%200"]
    with pytest.raises(ValueError, match="has the splits test, train. Choose one with --split"):
        load_image_set(str(folder), "dev")


def test_of_tables_named_after_splits_one_is_read(tmp_path: Path) -> None:
    folder = write_image_set(tmp_path / "set", "tsv")
    (folder / "qrels").mkdir()
    table = (folder / "qrels.tsv").read_text()
    (folder / "qrels.tsv").rename(folder / "qrels" / "test.tsv")
    (folder / "qrels" / "train.tsv").write_text(table.replace("page 0", "page 3"))

    assert load_image_set(str(folder)).qrels["q1"] == {"page%200": 1}
    assert load_image_set(str(folder), "train").qrels["q1"] == {"page%203": 1}
    with pytest.raises(ValueError, match="has the splits test, train. Choose one"):
        load_image_set(str(folder), "dev")


@pytest.mark.parametrize(("suffix", "comma"), [("tsv", "\t"), ("csv", ",")])
def test_numbers_keep_their_zeros_and_no_question_is_taken_for_nothing(tmp_path: Path, suffix: str, comma: str) -> None:
    (tmp_path / "corpus").mkdir()
    for number, name in enumerate(["007", "100"]):
        page_image(number).save(tmp_path / "corpus" / f"{name}.png")
    rows = {"queries": ["query-id query", "01 NA"], "qrels": ["query-id corpus-id score", "01 007 1", "01 100 2"]}
    for part, lines in rows.items():
        (tmp_path / f"{part}.{suffix}").write_text("".join(f"{line.replace(' ', comma)}\n" for line in lines))

    read = load_image_set(str(tmp_path))

    assert (read.queries, read.qrels) == ({"01": "NA"}, {"01": {"007": 1, "100": 2}})


@pytest.mark.parametrize("part", ["queries", "qrels", "corpus"])
def test_a_missing_table_is_named_with_what_would_do(tmp_path: Path, part: str) -> None:
    folder = write_image_set(tmp_path / "set", "saved")
    (folder / part).rename(tmp_path / "away")

    with pytest.raises(FileNotFoundError, match=f"has no {part}. Wanted {part}/"):
        load_image_set(str(folder))


def test_a_missing_column_is_named_with_those_that_are_there(tmp_path: Path) -> None:
    folder = write_image_set(tmp_path / "set", "tsv")
    (folder / "qrels.tsv").write_text("question\tcorpus-id\nq1\tpage 0\n")

    with pytest.raises(ValueError, match="columns question, corpus-id, and none is 'query-id'"):
        load_image_set(str(folder))


def test_qrels_of_another_corpus_are_refused(tmp_path: Path) -> None:
    folder = write_image_set(tmp_path / "set", "tsv")
    (folder / "qrels.tsv").write_text("query-id\tcorpus-id\nq1\tother\n")

    with pytest.raises(ValueError, match="no query has a relevant page in the corpus"):
        load_image_set(str(folder))


def test_an_image_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    folder = write_image_set(tmp_path / "set", "tsv")
    (folder / "corpus" / "page 3.png").write_bytes(b"no image")

    with pytest.raises(PageError, match="page 'page%203'"):
        list(load_image_set(str(folder)).pages())


@pytest.mark.parametrize("name", ["/nowhere/set", "./set", "set"])
def test_a_missing_folder_is_not_looked_for_on_the_hub(name: str) -> None:
    with pytest.raises(FileNotFoundError, match=f"There is no folder {name}"):
        load_image_set(name)


def test_a_query_without_text_and_half_a_grade_are_named(tmp_path: Path) -> None:
    folder = write_image_set(tmp_path / "set", "tsv")
    queries = (folder / "queries.tsv").read_text()
    (folder / "queries.tsv").write_text(f"{queries}q9\t\n")
    with pytest.raises(ValueError, match="1 queries have no text, such as 'q9'"):
        load_image_set(str(folder))

    (folder / "queries.tsv").write_text(queries)
    (folder / "qrels.tsv").write_text("query-id\tcorpus-id\tscore\nq1\tpage 0\t0.5\n")
    with pytest.raises(ValueError, match="query 'q1' and page 'page%200': a grade of relevance is a whole number"):
        load_image_set(str(folder))
