import pytest

from llama_index_ziprerank.labels.index_terms import find_index_terms

TERMS = ("contour", "surface", "marker", "palette", "legend", "gridline", "baseline", "keyframe")
FRONT = ["Title", "Contents"]
BODY = [f"All about the {term} here" for term in TERMS]


def _manual(index: str, body: list[str] | None = None) -> tuple[list[str], set[int]]:
    """Two pages in front, one page a term, and the index."""
    texts = [*FRONT, *(body or BODY), index]
    return texts, {2, len(texts)}


def _numbered(separator: str) -> str:
    return "\n".join(f"{term}{separator}{number}" for number, term in enumerate(TERMS, start=1))


@pytest.mark.parametrize("separator", [", ", " . . . . . . ", ". . . . . "])
def test_printed_numbers_become_pages_by_the_offset_that_puts_the_words_there(separator: str) -> None:
    texts, listings = _manual(_numbered(separator))

    found = find_index_terms(texts, [""] * len(texts), listings)

    assert found == [(term, (page,)) for page, term in enumerate(TERMS, start=3)]


def test_page_labels_win_where_no_offset_holds_throughout() -> None:
    body = [*BODY[:4], "A plate without a number", *BODY[4:]]
    printed = ["i", "ii", "1", "2", "3", "4", "plate", "5", "6", "7", "8", "9"]
    texts, listings = _manual(_numbered(", "), body)

    found = dict(find_index_terms(texts, printed, listings))

    assert found["palette"] == (6,) and found["legend"] == (8,)


def test_a_term_has_all_its_pages_and_a_range_means_each_of_them() -> None:
    texts, listings = _manual(_numbered(", ") + "\nhere about, 1–3\nall here, 2,\n4")

    found = dict(find_index_terms(texts, [""] * len(texts), listings))

    assert "here about" not in found  # stands on every page: asks for nothing in particular
    texts[2], texts[3], texts[4] = (f"{text} umbrella" for text in texts[2:5])
    texts[-1] += "\numbrella, 1–3\ncontour umbrella,\n1"
    found = dict(find_index_terms(texts, [""] * len(texts), listings))
    assert found["umbrella"] == (3, 4, 5)
    assert found["contour umbrella"] == (3,)


def test_a_range_may_leave_out_the_digits_that_stay_the_same() -> None:
    """11–2 means 11 and 12; 18–7 means nothing."""
    body = [f"page {number}" for number in range(1, 11)] + [f"All about the {term} here" for term in TERMS]
    index = "\n".join(f"{term}, {number}" for number, term in enumerate(TERMS, start=11))
    texts, listings = _manual(f"{index}\numbrella, 11–2\nparasol, 18–7", body)
    texts[12] += " umbrella parasol"
    texts[13] += " umbrella"

    found = dict(find_index_terms(texts, [""] * len(texts), listings))

    assert found["umbrella"] == (13, 14)
    assert "parasol" not in found and all(found.values())


@pytest.mark.parametrize(
    ("entry", "reason"),
    [
        ("contour, 5", "the term has a second entry with another page"),
        ("umbrella, 2", "its words do not stand on the page"),
        ("umbrella, 40", "the page does not exist"),
        ("umbrella, see marker, 3", "sends the reader elsewhere"),
        ("All, 1", "has no word of four letters"),
        ("umbrella, 1-8", "names more than three pages"),
    ],
)
def test_an_entry_that_names_no_certain_page_is_no_query(entry: str, reason: str) -> None:
    texts, listings = _manual(f"{_numbered(', ')}\n{entry}")

    found = dict(find_index_terms(texts, [""] * len(texts), listings))

    assert not {"umbrella", "umbrella, see marker", "All"} & set(found), reason
    assert ("contour" in found) == (entry != "contour, 5")


def test_an_index_whose_words_stand_elsewhere_is_left_out() -> None:
    texts, listings = _manual("\n".join(f"term{number}abcd, {number}" for number in range(1, 9)))

    assert find_index_terms(texts, [""] * len(texts), listings) == []


def test_the_contents_in_front_are_no_index() -> None:
    texts = [_numbered(", "), *BODY, "The end"]

    assert find_index_terms(texts, [""] * len(texts), {1}) == []
