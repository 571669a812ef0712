from llama_index_ziprerank.labels import ManualQuery, draw, label_manual
from llama_index_ziprerank.labels.headings import Heading

TEXTS = [
    "Contents\nBar graphs . . . . . 2",
    "Bar graphs\nFigure 1: Two red bars",
    *(f"Chapter {number} about the {term}" for number, term in enumerate(("palette", "marker", "legend"), start=2)),
    "Index\npalette, 3\nmarker, 4\nlegend, 5\nbars, 2\nred bars, 2",
]
OUTLINE = [Heading("Contents", 1), Heading("1 Bar graphs", 2)]
PRINTED = [str(number) for number in range(1, 7)]


def test_a_manual_gives_queries_of_every_kind_and_no_listing_competes() -> None:
    labelled = label_manual(OUTLINE, TEXTS, PRINTED)

    assert labelled.candidates == (2, 3, 4, 5)
    assert set(labelled.queries) == {
        ManualQuery("heading", "Bar graphs", (2,)),
        ManualQuery("question", "What are bar graphs?", (2,)),
        ManualQuery("caption", "Two red bars", (2,)),
        ManualQuery("term", "palette", (3,)),
        ManualQuery("term", "marker", (4,)),
        ManualQuery("term", "legend", (5,)),
        ManualQuery("term", "bars", (2,)),
        ManualQuery("term", "red bars", (2,)),
    }


def test_only_the_kinds_that_are_wanted_are_asked() -> None:
    assert {query.kind for query in label_manual(OUTLINE, TEXTS, PRINTED, ["caption"]).queries} == {"caption"}


def test_a_draw_takes_as_many_of_each_kind_and_is_that_of_the_seed() -> None:
    queries = label_manual(OUTLINE, TEXTS, PRINTED).queries
    drawn = draw("manual", queries, 2, seed=1)

    assert sorted(query.kind for query in drawn.values()) == ["caption", "heading", "question", "term", "term"]
    assert drawn == draw("manual", queries, 2, seed=1)
    assert drawn.items() <= draw("manual", queries, None, seed=1).items()


def test_a_query_keeps_its_id_when_other_kinds_are_left_out() -> None:
    all_kinds = draw("manual", label_manual(OUTLINE, TEXTS, PRINTED).queries, None, 0)
    terms = draw("manual", label_manual(OUTLINE, TEXTS, PRINTED, ["term"]).queries, None, 0)

    assert terms.items() <= all_kinds.items()
