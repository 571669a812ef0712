import pytest

from llama_index_ziprerank.labels.questions import as_question


@pytest.mark.parametrize(
    ("title", "question"),
    [
        ("Drawing Bar Graphs", "How do I draw bar graphs?"),
        ("Create a Ticket Policy", "How do I create a ticket policy?"),
        ("How to Build a Package", "How do I build a package?"),
        ("Bar Graphs", "What are bar graphs?"),
        ("Clock Skew", "What is the clock skew?"),
        ("The Key Module", "What is the key module?"),
        ("A simple flowable", "What is a simple flowable?"),
        ("Using LaTeX Packages", "How do I use LaTeX packages?"),
        ("DES Keys", "What are DES keys?"),
        ("kadm5_auth interface", "What is the kadm5_auth interface?"),
        ("Update Process", "What is the update process?"),
        ("Default Axis", "What is the default axis?"),
    ],
)
def test_a_heading_becomes_the_question_that_its_words_allow(title: str, question: str) -> None:
    assert as_question(title) == question


@pytest.mark.parametrize(
    "title",
    [
        "Graphs",
        "Bars and Lines",
        "Axes: an overview",
        "plot(x, y) calls",
        "HELPER PACKAGES",
        "Extending the Library",
        "About this document",
        "What is a keytab",
        "a b c d e f g h i j",
    ],
)
def test_a_heading_that_would_make_a_bad_question_makes_none(title: str) -> None:
    assert as_question(title) is None
