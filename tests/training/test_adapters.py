import gc
import io
import json
import pickle
import tracemalloc
from pathlib import Path
from typing import Any

import datasets
import pytest
from PIL import Image
from tiny_manual import tiny_manual

from llama_index_ziprerank.pages.pdf import read_pages
from llama_index_ziprerank.training.data import open_samples
from llama_index_ziprerank.training.rank_zephyr import rank_zephyr_sample
from llama_index_ziprerank.training.rows import hold_out
from llama_index_ziprerank.training.samples import RankingSample, SampleError
from llama_index_ziprerank.training.sources import page_image
from llama_index_ziprerank.training.teacher import LabelFile, TeacherQuery


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


def conversation(answer: str, announced: int = 3, query: str = "what is 2.5?") -> dict[str, Any]:
    request = (
        f"I will provide you with {announced} passages, each indicated by an alphabetical identifier []. Rank the "
        f"passages based on their relevance to the search query: {query}.\n\n"
        "[A] first passage\n[B] second: see [C] and\n[D] is no letter of ours yet\n[C] third\n\n"
        f"Search Query: {query}.\nRank the 3 passages above. The output format should be [B] > [A].\n"
    )
    turns = [("system", "You are RankGPT."), ("human", request), ("gpt", answer)]
    return {"id": "1", "conversations": [{"from": name, "value": text} for name, text in turns]}


def ranking(**columns: Any) -> dict[str, Any]:
    row = {
        "query_id": 1,
        "query": "which page is red?",
        "doc_name": "manual",
        "domain": "test",
        "candidate_page_ids": [3, 7, 9, 4],
        "gt_page_ids": [9],
        "neg_page_ids": [3],
        "openai_ranking": [1, 2, 3, 0],
    }
    return {**row, **columns}


def write_jsonl(path: Path, *rows: Any) -> str:
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return str(path)


def write_pages(folder: Path, names: tuple[str, str] = ("file_name", "page")) -> str:
    """Pages 3, 7 and 9 of a manual, each of a grey of its own."""
    folder.mkdir()
    encoded = []
    for page in (3, 7, 9):
        buffer = io.BytesIO()
        Image.new("RGB", (40, 40), (page, page, page)).save(buffer, "PNG")
        encoded.append(buffer.getvalue())
    table = {names[0]: ["manual"] * 3, names[1]: [3, 7, 9], "image": encoded}
    datasets.Dataset.from_dict(table).to_parquet(folder / "Test_filter.parquet")
    return str(folder)


def greys(sample: RankingSample) -> list[int]:
    return [page_image(page, 32).getpixel((0, 0))[0] for page in sample.pages]  # type: ignore[index]


def test_a_conversation_becomes_a_sample() -> None:
    sample = rank_zephyr_sample(conversation("[C] > [A] > [B]"))
    assert sample.query == "what is 2.5?"
    assert sample.pages == ["first passage", "second: see [C] and\n[D] is no letter of ours yet", "third"]
    assert (sample.order, sample.positives) == ([2, 0, 1], frozenset())


def test_passages_that_the_answer_leaves_out_stay_unranked() -> None:
    assert rank_zephyr_sample(conversation("[C] > [A]")).order == [2, 0]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (conversation("[A] > [E]"), r"names \['E'\], but there are only 3"),
        (conversation("[A] > [A]"), "twice"),
        (conversation("I cannot say."), "neither an order nor a positive"),
        (conversation("[A]", announced=4), "announces 4 passages and gives 3"),
        ({"conversations": [{"value": "a"}, {"value": "no query here"}, {"value": "[A]"}]}, "no line 'Search Query"),
        ({"conversations": ["one"]}, "three turns"),
        ({"conversations": [{"value": "a"}, {"value": None}, {"value": "[A]"}]}, "no line 'Search Query"),
        (
            {"conversations": [{"value": "a"}, {"value": "x\nSearch Query: \nRank them.\n"}, {"value": "[A]"}]},
            "no line",
        ),
    ],
)
def test_a_conversation_that_is_none_says_why(row: dict, message: str) -> None:
    with pytest.raises(SampleError, match=message):
        rank_zephyr_sample(row)


@pytest.mark.parametrize("suffix", ["jsonl", "json", "parquet"])
def test_one_data_set_in_three_files_gives_the_same_samples(suffix: str, tmp_path: Path) -> None:
    rows = [conversation("[C] > [A] > [B]"), conversation("[B] > [A]", query="why?")]
    path = tmp_path / f"data.{suffix}"
    if suffix == "jsonl":
        write_jsonl(path, *rows)
    elif suffix == "json":
        path.write_text(json.dumps(rows))
    else:
        datasets.Dataset.from_list(rows).to_parquet(path)
    samples = open_samples(str(path), max_candidates=20)
    assert [samples[i].order for i in range(len(samples))] == [[2, 0, 1], [1, 0]]
    assert samples[1].query == "why?"


@pytest.mark.parametrize("names", [("file_name", "page"), ("doc_name", "page_id")])
def test_a_distilled_ranking_is_joined_with_its_pages(names: tuple[str, str], tmp_path: Path) -> None:
    data = write_jsonl(tmp_path / "rankings.jsonl", ranking())
    [sample] = [open_samples(data, max_candidates=10, pages=write_pages(tmp_path / "pages", names))[0]]
    assert greys(sample) == [3, 7, 9]  # page 4 has no image: it leaves the list and the order
    assert (sample.order, sample.positives) == ([1, 2, 0], frozenset({2}))


@pytest.mark.parametrize("as_images", [True, False])
def test_a_page_whose_cell_is_empty_has_no_image(as_images: bool, tmp_path: Path) -> None:
    buffer = io.BytesIO()
    Image.new("RGB", (40, 40)).save(buffer, "PNG")
    table = {
        "file_name": ["manual"] * 4,
        "page": [3, 7, 9, 4],
        "image": [buffer.getvalue(), None, buffer.getvalue(), None],
    }
    rows = datasets.Dataset.from_dict(table)
    if as_images:
        rows = rows.cast_column("image", datasets.Image())
    (tmp_path / "pages").mkdir()
    rows.to_parquet(tmp_path / "pages" / "part.parquet")
    data = write_jsonl(tmp_path / "rankings.jsonl", ranking())
    sample = open_samples(data, max_candidates=10, pages=str(tmp_path / "pages"))[0]
    assert (len(sample.pages), sample.order, sample.positives) == (2, [1, 0], frozenset({1}))


def test_rankings_of_ones_own_find_their_pages_where_they_were_labelled(tmp_path: Path) -> None:
    (tmp_path / "pages").mkdir()
    manual = tiny_manual(tmp_path / "pages" / "manual.pdf")
    Image.new("RGB", (40, 40), (9, 9, 9)).save(tmp_path / "pages" / "cover.png")
    ids = ["manual.pdf#2", "manual.pdf#99", "cover", "manual.pdf#9"]
    query = TeacherQuery("q", "which page is dark?", "manual.pdf", "tests", tuple(ids), ("cover",), None)
    with LabelFile(tmp_path / "labels.jsonl") as labels:
        labels.add(query, [2, 1, 3, 0], "[C] > [B] > [D] > [A]")
    samples = open_samples(str(tmp_path / "labels.jsonl"), max_candidates=10, pages=str(tmp_path / "pages"))
    sample = samples[0]
    assert (sample.order, sample.positives) == ([1, 2, 0], frozenset({1}))  # there is no page 99
    drawn = [page.image for page in read_pages(manual, max_side=1024)]
    assert [page_image(page, 32).size for page in sample.pages] == [drawn[1].size, (40, 40), drawn[8].size]
    elsewhere = pickle.loads(pickle.dumps(samples))  # as a process that reads pages gets them
    assert elsewhere[0] == sample
    del elsewhere
    gc.collect()
    folder = Path(str(sample.pages[0]))
    assert folder.is_file()
    del samples
    gc.collect()
    assert not folder.exists()


def test_the_teacher_has_no_part_in_which_candidates_are_measured(tmp_path: Path) -> None:
    rows = [
        {"query": f"q{i}", "texts": list("abcdef"), "order": [5, 4, 3, 2, 1, 0], "positives": [4]} for i in range(4)
    ]
    samples = open_samples(write_jsonl(tmp_path / "lists.jsonl", *rows), max_candidates=3)
    learned, held_out = hold_out(samples, 1)
    assert (learned[0].pages, learned[0].order) == (["d", "e", "f"], [2, 1, 0])
    assert (held_out[0].pages, held_out[0].order, held_out[0].positives) == (["a", "b", "e"], [2, 1, 0], frozenset({2}))


def test_the_order_is_filtered_before_it_is_cut(tmp_path: Path) -> None:
    """Page 4 stands first and has no image; cut first, the list would lose page 7 for it."""
    data = write_jsonl(tmp_path / "rankings.jsonl", ranking(openai_ranking=[3, 1, 0, 2]))
    sample = open_samples(data, max_candidates=2, pages=write_pages(tmp_path / "pages"))[0]
    assert greys(sample) == [7, 9]  # the positive, page 9, takes the last place from page 3
    assert (sample.order, sample.positives) == ([0, 1], frozenset({1}))


def test_a_ranking_without_its_true_page_keeps_the_teachers_order_and_no_positive(tmp_path: Path) -> None:
    data = write_jsonl(tmp_path / "rankings.jsonl", ranking(gt_page_ids=[100]))
    sample = open_samples(data, max_candidates=10, pages=write_pages(tmp_path / "pages"))[0]
    assert (sample.order, sample.positives) == ([1, 2, 0], frozenset())


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"openai_ranking": [9]}, r"the ranking names \[9\], but there are only 4"),
        ({"openai_ranking": [1, 1]}, "twice"),
        ({"doc_name": "other"}, "0 of the 4 candidate pages of 'other' have an image"),
        ({"query": " "}, "the query is blank"),
        ({"gt_page_ids": None}, "no gt_page_ids"),
    ],
)
def test_malformed_rows_are_counted_and_named_and_refused_or_skipped(
    columns: dict, message: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    data = write_jsonl(tmp_path / "rankings.jsonl", ranking(), ranking(**columns), "{cut off", ranking())
    pages = write_pages(tmp_path / "pages")
    with pytest.raises(ValueError, match=rf"2 of 4 rows of .*: row 2: .*{message}.*row 3: the line is not JSON.*skip"):
        open_samples(data, max_candidates=10, pages=pages)
    samples = open_samples(data, max_candidates=10, pages=pages, malformed="skip")
    assert (len(samples), len(samples.malformed)) == (2, 2)
    assert "2 of 4 rows" in caplog.text and "left out" in caplog.text
    assert samples[1].query == "which page is red?"


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"a": ' + "[" * 100_000 + "]" * 100_000 + "}", "the line is not JSON"),
        (json.dumps({"query": "q", "pages": ["a passage of text " * 30, "b"], "order": [0]}), "no image file 'a pass"),
    ],
)
def test_a_row_that_no_reader_takes_is_malformed_too(line: str, message: str, tmp_path: Path) -> None:
    data = write_jsonl(tmp_path / "own.jsonl", {"query": "q", "texts": ["a", "b"], "order": [0]}, line)
    with pytest.raises(ValueError, match=f"row 2: {message}"):
        open_samples(data, max_candidates=10)
    assert len(open_samples(data, max_candidates=10, malformed="skip")) == 1


@pytest.mark.parametrize("suffix", ["jsonl", "json", "parquet"])
def test_pages_and_texts_may_stand_in_one_file_whose_name_is_no_pattern(suffix: str, tmp_path: Path) -> None:
    for name in ("a.png", "b.png"):
        (tmp_path / name).touch()
    rows = [
        {"query": "q", "texts": ["a", "b"], "order": [1, 0]},
        {"query": "r", "pages": ["a.png", "b.png"], "positives": [0]},
    ]
    path = tmp_path / f"lists [2] *.{suffix}"
    if suffix == "parquet":
        datasets.Dataset.from_list([{"texts": None, "order": None, **rows[1]}, {**rows[0]}]).to_parquet(path)
    elif suffix == "json":
        path.write_text(json.dumps(rows[::-1]))
    else:
        write_jsonl(path, *rows[::-1])
    samples = open_samples(str(path), max_candidates=10)
    assert [samples[i].query for i in range(len(samples))] == ["r", "q"]
    assert samples[0].pages == [tmp_path / "a.png", tmp_path / "b.png"]


def test_data_of_which_nothing_can_be_used_is_refused_even_when_skipping(tmp_path: Path) -> None:
    data = write_jsonl(tmp_path / "own.jsonl", {"query": "q", "texts": ["only one"], "order": [0]})
    with pytest.raises(ValueError, match="1 of 1 rows .* wanted at least 2 to compare"):
        open_samples(data, max_candidates=10, malformed="skip")


def test_what_is_missing_or_unknown_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="No training data at 'nowhere.jsonl'"):
        open_samples("nowhere.jsonl", max_candidates=10)
    strange = write_jsonl(tmp_path / "strange.jsonl", {"question": "q", "answers": []})
    with pytest.raises(ValueError, match="has the columns answers, question. Training lists have 'conversations'"):
        open_samples(strange, max_candidates=10)
    distilled = write_jsonl(tmp_path / "rankings.jsonl", ranking())
    with pytest.raises(ValueError, match="but not the pages. Pass --pages"):
        open_samples(distilled, max_candidates=10)
    with pytest.raises(FileNotFoundError, match="empty' is no folder"):
        open_samples(distilled, max_candidates=10, pages=str(tmp_path / "empty"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="0 of the 4 candidate pages of 'manual' have an image in .*empty'"):
        open_samples(distilled, max_candidates=10, pages=str(tmp_path / "empty"))
    wrong = write_pages(tmp_path / "pages", ("file", "number"))
    with pytest.raises(ValueError, match="the columns file, number, image; page images have file_name, page, image"):
        open_samples(distilled, max_candidates=10, pages=wrong)
    (tmp_path / "empty.jsonl").write_text("\n")
    with pytest.raises(ValueError, match="holds no rows"):
        open_samples(str(tmp_path / "empty.jsonl"), max_candidates=10)
    with pytest.raises(ValueError, match="No line of .* is a JSON object"):
        open_samples(write_jsonl(tmp_path / "lines.jsonl", "[1]", "{"), max_candidates=10)
    (tmp_path / "empty.json").touch()
    with pytest.raises(ValueError, match="empty.json' holds no rows"):
        open_samples(str(tmp_path / "empty.json"), max_candidates=10)
    (tmp_path / "broken.parquet").write_bytes(b"no parquet")
    with pytest.raises(ValueError, match="broken.parquet' cannot be read"):
        open_samples(str(tmp_path / "broken.parquet"), max_candidates=10)


def test_no_query_is_both_learned_and_held_out(tmp_path: Path) -> None:
    rows = [{"query": f"q{i % 10}", "texts": ["a", f"b{i}"], "order": [0, 1]} for i in range(40)]
    samples = open_samples(write_jsonl(tmp_path / "own.jsonl", *rows), max_candidates=10)
    learned, held_out = hold_out(samples, 6)
    sides = [{side[i].query for i in range(len(side))} for side in (learned, held_out)]
    assert not sides[0] & sides[1]
    assert (len(learned), len(held_out)) == (32, 8)
    with pytest.raises(ValueError, match="leaves none to train on"):
        hold_out(samples, 40)


@pytest.mark.slow
def test_fifty_thousand_lists_never_sit_in_memory(tmp_path: Path) -> None:
    path = tmp_path / "many.jsonl"
    with path.open("w") as file:
        for number in range(50_000):
            texts = [f"passage {place} of {number}" + " and words" * 10 for place in range(20)]
            file.write(json.dumps({"query": f"question {number}", "texts": texts, "order": [*range(20)]}) + "\n")
    tracemalloc.start()
    try:
        samples = open_samples(str(path), max_candidates=10)
        assert len(samples) == 50_000 and samples[49_999].query == "question 49999"
        _, most = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert most < path.stat().st_size / 20
