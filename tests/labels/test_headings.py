from pathlib import Path

import pytest
from pypdf import PdfWriter
from pypdf.generic import DictionaryObject, NameObject, TextStringObject
from tiny_manual import CHAPTERS, tiny_manual, write_pdf

from llama_index_ziprerank.labels import label_manual
from llama_index_ziprerank.labels.headings import (
    Heading,
    clean_title,
    find_listings,
    read_outline,
    verified_headings,
)
from llama_index_ziprerank.pages.page import PageError


@pytest.mark.parametrize(
    ("title", "query"),
    [
        ("4.2 Bar Graphs", "Bar Graphs"),
        ("4  Bar\n Graphs", "Bar Graphs"),
        ("4.2. Bar Graphs", "Bar Graphs"),
        ("A.5 Font Tables", "Font Tables"),
        ("Chapter IV: The Key Module", "The Key Module"),
        ("Appendix B Markers of GLE", "Markers of GLE"),
        ("3D Bar Graphs", "3D Bar Graphs"),
        ("A simple graph", "A simple graph"),
        ("I/O Functions", "I/O Functions"),
        ("Ofﬁce hours", "Office hours"),
    ],
)
def test_a_heading_loses_its_number_and_nothing_else(title: str, query: str) -> None:
    assert clean_title(title) == query


def test_an_outline_is_read_in_order_with_pages_from_1(tmp_path: Path) -> None:
    outline = read_outline(tiny_manual(tmp_path / "manual.pdf"))

    assert outline[0] == Heading("Contents", 1)
    assert [heading.page for heading in outline] == list(range(1, 10))


def test_a_pdf_without_an_outline_has_no_headings(tmp_path: Path) -> None:
    assert read_outline(write_pdf(tmp_path / "plain.pdf", [["text"]])) == []


def test_a_heading_found_on_its_page_is_a_query() -> None:
    texts = ["nothing here", "2\nBar graphs\nand so on"]

    assert verified_headings([Heading("2 Bar graphs", 2)], texts, set()) == [Heading("Bar graphs", 2)]


@pytest.mark.parametrize(
    ("outline", "reason"),
    [
        ([Heading("Introduction", 1)], "one word"),
        ([Heading("4.2 Graphs", 1)], "one word beside its number"),
        ([Heading("Surface plots", 1)], "words that the page lacks"),
        ([Heading("Bar graphs", 1), Heading("Bar graphs", 2)], "two pages of this name"),
        ([Heading("Bar graphs", 1), Heading("3 BAR GRAPHS", 2)], "two pages of this name but for number and case"),
    ],
)
def test_a_heading_that_asks_for_no_certain_page_is_no_query(outline: list[Heading], reason: str) -> None:
    assert verified_headings(outline, ["Introduction: Bar graphs", "Bar graphs"], set()) == [], reason


def test_a_heading_on_a_page_that_could_not_be_read_is_no_query() -> None:
    outline = [Heading("Bar graphs", 1), Heading("Polar grids", 2)]  # the last page of all is broken

    assert verified_headings(outline, ["Bar graphs"], set()) == [Heading("Bar graphs", 1)]


def test_a_heading_listed_twice_for_one_page_is_one_query() -> None:
    outline = [Heading("Bar graphs", 1), Heading("1 Bar Graphs", 1)]

    assert verified_headings(outline, ["Bar graphs"], set()) == [Heading("Bar graphs", 1)]


def test_a_heading_on_a_page_that_lists_is_no_query() -> None:
    assert verified_headings([Heading("Bar graphs", 1)], ["Bar graphs"], {1}) == []


def test_the_outline_of_a_file_that_only_its_owner_may_change_is_read(tmp_path: Path) -> None:
    writer = PdfWriter(clone_from=tiny_manual(tmp_path / "manual.pdf"))
    writer.encrypt(user_password="", owner_password="owner", algorithm="AES-256")
    writer.write(tmp_path / "locked.pdf")

    assert read_outline(tmp_path / "locked.pdf") == read_outline(tmp_path / "manual.pdf") != []


def test_an_outline_that_pypdf_stumbles_over_is_an_error_that_names_the_file(tmp_path: Path) -> None:
    """A page without a number of its own, which poppler shows, and an outline of too many levels."""
    writer = PdfWriter(clone_from=tiny_manual(tmp_path / "manual.pdf"))
    pages = writer.root_object["/Pages"].get_object()["/Kids"]
    pages[1] = DictionaryObject(pages[1].get_object())
    writer.write(tmp_path / "unnumbered.pdf")
    writer = PdfWriter(clone_from=tmp_path / "manual.pdf")
    entry = writer.root_object["/Outlines"].get_object()
    for _ in range(1500):
        child = DictionaryObject({NameObject("/Title"): TextStringObject("Deeper")})
        entry[NameObject("/First")] = writer._add_object(child)
        entry = child
    writer.write(tmp_path / "deep.pdf")

    for name in ("unnumbered.pdf", "deep.pdf"):
        with pytest.raises(PageError, match=rf"{name}: its outline cannot be read"):
            read_outline(tmp_path / name)


def test_a_damaged_outline_is_an_error_that_names_the_file(tmp_path: Path) -> None:
    (tmp_path / "broken.pdf").write_bytes(b"%PDF-1.4\nnothing")

    with pytest.raises(PageError, match="broken.pdf: its outline cannot be read"):
        read_outline(tmp_path / "broken.pdf")


OUTLINE = [Heading(f"{n} {title}", n + 1) for n, title in enumerate(CHAPTERS, start=1)]


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("Contents\nPreface", "its first line says so"),
        ("INDEX\nterms", "its first line says so, though it ends like a Roman number"),
        ("Table of Contents  iii\nterms", "its first line says so beside a page number"),
        ("\n".join(f"{title} .... {n}" for n, title in enumerate("abcdefgh")), "dot leaders"),
        ("\n".join(f"{n} {title} {n + 1}" for n, title in enumerate(CHAPTERS, start=1)), "headings of other pages"),
        ("\n".join(f"term {n}, {n}, {n + 3}" for n in range(20)), "terms with page numbers"),
    ],
)
def test_a_page_that_lists_is_a_listing(text: str, reason: str) -> None:
    assert find_listings(OUTLINE, [text]) == {1}, reason


@pytest.mark.parametrize(
    "text",
    [
        "",
        "Bar graphs\nA page with prose about bars,\nand, in 1998, graphs.",
        "\n".join(["See Contour lines", "Contour lines", "Bar graphs", *["prose"] * 30]),
        "1, 2, 3\n4, 5, 6",
    ],
)
def test_a_page_that_tells_is_no_listing(text: str) -> None:
    assert find_listings(OUTLINE, [text]) == set()


def test_the_contents_page_of_a_manual_neither_competes_nor_is_asked_for(tmp_path: Path) -> None:
    outline = read_outline(tiny_manual(tmp_path / "manual.pdf"))
    contents = "\n".join(f"{title} . . . . . {n}" for n, title in enumerate(CHAPTERS, start=2))

    labelled = label_manual(outline, [contents, *CHAPTERS], [""] * 9, ["heading"])

    assert [query.text for query in labelled.queries] == list(CHAPTERS)
    assert labelled.candidates == tuple(range(2, 10))
