"""The text layer's order, the candidates, and the questions that are held out: rules that need no model."""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from llama_index_ziprerank.training.finetune.documents import Document, Labels, Question, write_whole
from llama_index_ziprerank.training.finetune.lists import teacher_query
from llama_index_ziprerank.training.finetune.questions import Asked, hold_out, numbered, read_lines, written_questions
from llama_index_ziprerank.training.finetune.run import _without_training
from llama_index_ziprerank.training.finetune.text_teacher import TextTeacher, sentence_embedder
from llama_index_ziprerank.training.teacher import Teacher, TeacherSettings, TeacherStoppedError, UnreadableAnswerError

TEXTS = ["bar graphs and bars", "contour lines", "nothing of the kind", "graphs"]


def document(pages: int = 4, sections: Sequence[int] | None = None, texts: list[str] | None = None) -> Document:
    numbers = tuple(range(1, pages + 1))
    return Document("manual", texts or TEXTS, Labels((), numbers, tuple(sections or numbers)))


def test_bm25_puts_pages_with_the_words_first_and_leaves_the_others_as_they_were() -> None:
    teacher = TextTeacher(document())
    assert teacher.order("bar graphs", [3, 2, 4, 1]) == [1, 4, 3, 2]
    assert teacher.order("of the", [3, 2, 4, 1]) == [3, 2, 4, 1]


def test_embeddings_are_fused_by_rank() -> None:
    """BM25 says 1, 4, 2, 3 and the embeddings say 2, 4, 3, 1: page 4 is second twice, and wins."""
    vectors = {"bar graphs": 1.0, TEXTS[0]: 0.1, TEXTS[1]: 0.9, TEXTS[2]: 0.2, TEXTS[3]: 0.8}
    teacher = TextTeacher(document(), lambda texts: np.array([[vectors[text]] for text in texts]))
    places = {1: (1, 4), 2: (3, 1), 3: (4, 3), 4: (2, 2)}
    fused = {page: sum(1 / (61 + rank - 1) for rank in ranks) for page, ranks in places.items()}
    assert teacher.order("bar graphs", [1, 2, 3, 4]) == sorted(places, key=lambda page: -fused[page])


def test_pages_without_any_text_are_refused() -> None:
    with pytest.raises(ValueError, match="'manual' has no text layer.* LLM"):
        TextTeacher(document(texts=["", " ", "", "\n"]))


def test_where_an_llm_teaches_documents_need_no_text_layer() -> None:
    scanned = document(texts=["", "1", "2", "3"])  # all that an OCR program found are page numbers
    ranking = {"q": [(2, 4.0), (1, 3.0), (3, 2.0), (4, 1.0)]}
    figures = _without_training([Asked("q", scanned, "why?", (2,))], ranking, [scanned])
    assert list(figures) == ["first stage"] and figures["first stage"]["q"]["recall@1"] == 1
    with pytest.raises(ValueError, match="has no text layer"):
        TextTeacher(scanned)
    assert list(_without_training([Asked("q", document(), "why?", (2,))], ranking, [document()]))[0] == "BM25"


def test_a_page_that_the_first_stage_misses_takes_the_last_place() -> None:
    ranked = [(1, 4.0), (2, 3.0), (3, 2.0), (4, 1.0)]
    made = teacher_query(Asked("q", document(), "why?", (4,)), ranked, 3)
    assert made.candidates == ("manual-00001", "manual-00002", "manual-00004")
    assert made.positives == ("manual-00004",) and made.first_stage_scores == (4.0, 3.0, 1.0)
    assert teacher_query(Asked("q", document(), "why?", (2,)), ranked, 3).candidates[-1] == "manual-00003"


@given(st.permutations(range(1, 8)), st.sets(st.integers(1, 7), min_size=1, max_size=3), st.integers(2, 7))
def test_candidates_are_as_many_as_asked_for_and_hold_an_answer(order: list[int], answers: set[int], most: int) -> None:
    ranked = [(page, -float(place)) for place, page in enumerate(order)]
    made = teacher_query(Asked("q", document(7, texts=["x"] * 7), "why?", tuple(sorted(answers))), ranked, most)
    assert len(set(made.candidates)) == len(made.candidates) == most
    assert len(set(made.positives) & set(made.candidates)) >= min(len(answers), most - 1)


@given(st.lists(st.integers(1, 9), min_size=4, max_size=20), st.floats(0.1, 0.6), st.integers(0, 5))
def test_held_out_and_learned_questions_share_no_heading(pages: list[int], share: float, seed: int) -> None:
    sections = (1, 1, 2, 2, 3, 3, 4, 4, 5)
    made = document(9, sections, ["x"] * 9)
    asked = [Asked(str(number), made, "why?", (page,)) for number, page in enumerate(pages)]
    if len({sections[page - 1] for page in pages}) == 1:
        return
    try:
        learned, held = hold_out(asked, share, seed)
    except ValueError:  # one heading has nearly all questions
        return
    assert sorted(q.id for q in [*learned, *held]) == sorted(q.id for q in asked)
    assert not {sections[q.pages[0] - 1] for q in learned} & {sections[q.pages[0] - 1] for q in held}
    assert len(held) >= share * len(asked)


def test_a_question_that_is_asked_twice_is_one_question_with_all_its_pages() -> None:
    asked = numbered(document(), [Question("a", (1,)), Question("b", (2,)), Question("a", (3,))])
    assert [(q.id, q.text, q.pages) for q in asked] == [("manual:00001", "a", (1, 3)), ("manual:00002", "b", (2,))]


def test_questions_are_read_line_by_line() -> None:
    text = "Here you are:\n1. What is a bar?\n2) Why is it?\n* How do I draw it?\nWhy?\n"
    assert read_lines(text, 5) == ["What is a bar?", "Why is it?", "How do I draw it?"]
    assert read_lines(text, 2) == ["What is a bar?", "Why is it?"]
    with pytest.raises(UnreadableAnswerError, match="holds no question"):
        read_lines("I cannot read this.", 3)


@pytest.mark.parametrize(
    ("written", "questions"),
    [
        (
            "1. 主軸の回転数はどこで設定しますか？\n2．電池はどう廃棄しますか。",
            ["主軸の回転数はどこで設定しますか？", "電池はどう廃棄しますか。"],
        ),
        ("**What is the pressure?**\n2. **How is it reset?**", ["What is the pressure?", "How is it reset?"]),
        ("- „Wie wird das Getriebe geschmiert?“", ["Wie wird das Getriebe geschmiert?"]),
        ("ما هو ضغط المضخة؟", ["ما هو ضغط المضخة؟"]),
        (
            "24 V relays: which fuse is it?\n3.5 mm plugs fit where?",
            ["24 V relays: which fuse is it?", "3.5 mm plugs fit where?"],
        ),
    ],
)
def test_questions_are_read_in_other_scripts_in_bold_in_quotes_and_with_numbers_of_their_own(
    written: str, questions: list[str]
) -> None:
    assert read_lines(written, 5) == questions


async def test_a_page_without_questions_is_not_asked_about_again(tmp_path: Path) -> None:
    """Else all later questions had other numbers, under which their rankings would not be found."""
    asked: list[str] = []

    async def ask(prompt: str, images: Sequence[Image.Image]) -> str:
        asked.append(prompt)
        if len(asked) == 2:
            raise PermissionError
        return f"What is told in place {len(asked)}?"

    async def written() -> list[Question]:
        image = Image.new("RGB", (8, 8))
        return await written_questions(
            document(), Teacher(ask, TeacherSettings(concurrency=1)), lambda name: image, tmp_path / "q.jsonl", count=1
        )

    first = await written()
    assert [question.pages for question in first] == [(1,), (3,), (4,)]
    assert await written() == first
    assert len(asked) == 4


async def test_half_a_character_in_a_question_is_kept(tmp_path: Path) -> None:
    async def ask(prompt: str, images: Sequence[Image.Image]) -> str:
        return "What is told here \ud83d?"

    image = Image.new("RGB", (8, 8))
    for _ in range(2):
        found = await written_questions(document(), Teacher(ask), lambda _: image, tmp_path / "q.jsonl", count=1)
        assert {question.text for question in found} == {"What is told here \ud83d?"}
    write_whole(tmp_path / "lists.jsonl", json.dumps(found[0].text, ensure_ascii=False))
    assert json.loads((tmp_path / "lists.jsonl").read_text(encoding="utf-8")) == found[0].text


async def test_a_document_of_which_no_page_gets_questions_is_asked_about_again(tmp_path: Path) -> None:
    async def ask(prompt: str, images: Sequence[Image.Image]) -> str:
        raise PermissionError("no such key")

    image = Image.new("RGB", (8, 8))
    for _ in range(2):
        with pytest.raises(TeacherStoppedError, match="No page of manual got questions; the last: no such key"):
            await written_questions(document(), Teacher(ask), lambda _: image, tmp_path / "q.jsonl", count=1)


def test_a_missing_sentence_model_is_named() -> None:
    pytest.importorskip("sentence_transformers")
    with pytest.raises(OSError, match="nowhere"):
        sentence_embedder("./nowhere")
