"""The laws of reading a PDF: what a page carries, and what a broken page does to its file."""

import shutil
import weakref
from collections.abc import Callable
from math import isnan, nan
from pathlib import Path

import pytest
from pypdf import PageObject, PdfWriter
from pypdf.constants import PageLabelStyle
from pypdf.generic import (
    ArrayObject,
    FloatObject,
    IndirectObject,
    NameObject,
    NumberObject,
    StreamObject,
)
from three_pages import DPI, LETTER, scan_bytes, set_contents, write

from llama_index_ziprerank.pages.page import BrokenPageError, PageError, PageWarning
from llama_index_ziprerank.pages.pdf import count_pages, read_pages


def on_page_2(change: Callable[[PdfWriter, PageObject], object]) -> Callable[[PdfWriter], object]:
    return lambda writer: change(writer, writer.pages[1])


def set_box(page: PageObject, *values: float) -> None:
    corners = [NameObject("/NaN") if isnan(value) else FloatObject(value) for value in values]
    page[NameObject("/MediaBox")] = ArrayObject(corners)
    page.pop("/CropBox", None)


def test_every_page_comes_once_with_its_number_text_and_picture(manual: Path) -> None:
    pages = list(read_pages(manual, dpi=DPI))

    assert [page.number for page in pages] == [page.id.number for page in pages] == [1, 2, 3]
    assert [page.text for page in pages] == ["Page 1 speaks", "Page 2 speaks", "Page 3 speaks"]
    assert {(page.image.mode, page.image.size) for page in pages} == {("RGB", LETTER)}
    assert {(page.file_name, page.file_path) for page in pages} == {("manual.pdf", str(manual))}


def test_ligatures_are_read_as_letters(tmp_path: Path) -> None:
    def join(writer: PdfWriter, page: PageObject) -> None:
        names = StreamObject()
        names._data = b"1 begincodespacerange <00> <ff> endcodespacerange 1 beginbfchar <23> <fb03> endbfchar"
        page["/Resources"]["/Font"]["/F1"][NameObject("/ToUnicode")] = writer._add_object(names)  # type: ignore[index]
        set_contents(writer, page, b"BT /F1 24 Tf 72 700 Td (O#ce) Tj ET")

    path = write(tmp_path / "joined.pdf", on_page_2(join))
    assert [page.text for page in read_pages(path, dpi=DPI)][1] == "Office"


def test_labels_are_the_pdfs_own(tmp_path: Path) -> None:
    def label(writer: PdfWriter) -> None:
        writer.set_page_label(0, 1, style=PageLabelStyle.LOWERCASE_ROMAN)
        writer.set_page_label(2, 2, style=PageLabelStyle.DECIMAL, prefix="A-", start=7)

    pages = read_pages(write(tmp_path / "labelled.pdf", label), dpi=DPI)
    assert [page.label for page in pages] == ["i", "ii", "A-7"]


def test_ids_follow_the_bytes_and_not_the_name(manual: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copy(manual, tmp_path / "renamed.pdf"))
    edited = write(tmp_path / "edited.pdf", lambda writer: writer.add_metadata({"/Title": "new"}))

    ids = [str(page.id) for page in read_pages(manual, dpi=DPI)]
    assert ids == [str(page.id) for page in read_pages(copy, dpi=DPI)]
    assert not set(ids) & {str(page.id) for page in read_pages(edited, dpi=DPI)}


def test_pages_are_read_one_at_a_time_and_not_kept(manual: Path) -> None:
    pages = read_pages(manual, dpi=DPI)
    first = weakref.ref(next(pages).image)
    next(pages)
    assert first() is None

    manual.unlink()  # the third page is still to be read
    with pytest.raises(BrokenPageError, match=r"manual\.pdf, page 3"), pytest.warns(PageWarning, match="no text"):
        next(pages)


@pytest.mark.parametrize("name", ["-v.pdf", "zwei Wörter.pdf", "日本.pdf"])
def test_odd_file_names_are_read(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / name)
    monkeypatch.chdir(tmp_path)
    assert [page.file_name for page in read_pages(name, dpi=DPI)] == [name] * 3


def test_a_picture_never_exceeds_the_longest_side(manual: Path) -> None:
    assert next(read_pages(manual, dpi=150, max_side=88)).image.size == (68, 88)


def test_a_turned_page_is_drawn_turned(tmp_path: Path) -> None:
    turned = write(tmp_path / "turned.pdf", on_page_2(lambda writer, page: page.rotate(90)))
    assert [page.image.size for page in read_pages(turned, dpi=DPI)] == [LETTER, LETTER[::-1], LETTER]


def test_only_the_crop_box_is_drawn(tmp_path: Path) -> None:
    def crop(writer: PdfWriter, page: PageObject) -> None:
        page[NameObject("/CropBox")] = ArrayObject([FloatObject(value) for value in (36, 36, 396, 756)])

    pages = list(read_pages(write(tmp_path / "cropped.pdf", on_page_2(crop)), dpi=DPI))
    assert pages[1].image.size == (100, 200)


@pytest.mark.parametrize("crop", [(1000, 1000, 1200, 1250), (100, 100, 100, 100), (0, 900, 612, 950)])
def test_a_page_whose_crop_box_shows_nothing_of_it_is_drawn_whole(tmp_path: Path, crop: tuple[int, ...]) -> None:
    def cut(writer: PdfWriter, page: PageObject) -> None:
        page[NameObject("/CropBox")] = ArrayObject([NumberObject(corner) for corner in crop])

    _, whole, _ = read_pages(write(tmp_path / "whole.pdf"), dpi=DPI)
    pages = list(read_pages(write(tmp_path / "cut.pdf", on_page_2(cut)), dpi=DPI))
    assert [page.number for page in pages] == [1, 2, 3]
    assert pages[1].image.tobytes() == whole.image.tobytes()


def test_a_page_of_200_inches_is_drawn_within_the_longest_side(tmp_path: Path) -> None:
    poster = write(tmp_path / "poster.pdf", on_page_2(lambda writer, page: set_box(page, 0, 0, 14400, 14400)))
    assert [page.image.size for page in read_pages(poster, dpi=150, max_side=100)][1] == (100, 100)


@pytest.mark.parametrize("box", [(0, 0, 0, 0), (0, 0, 5), (0, 0, nan, 100)], ids=["empty", "short", "nan"])
def test_an_unreadable_box_counts_as_letter(tmp_path: Path, box: tuple[float, ...]) -> None:
    odd = write(tmp_path / "odd.pdf", on_page_2(lambda writer, page: set_box(page, *box)))
    assert [page.image.size for page in read_pages(odd, dpi=DPI)] == [LETTER] * 3


def test_a_box_with_swapped_corners_is_the_same_box(tmp_path: Path) -> None:
    swapped = write(tmp_path / "swapped.pdf", on_page_2(lambda writer, page: set_box(page, 612, 792, 0, 0)))
    assert [page.text for page in read_pages(swapped, dpi=DPI)][1] == "Page 2 speaks"


BROKEN_PAGES: dict[str, Callable[[PdfWriter, PageObject], object]] = {
    "a million points": lambda writer, page: set_box(page, 0, 0, 1e6, 1e6),
    "smaller than a point": lambda writer, page: set_box(page, 0, 0, 0.01, 0.01),
    "a thread": lambda writer, page: set_box(page, 0, 0, 14400, 1),
    "damaged compression": lambda writer, page: set_contents(writer, page, b"\x78\x9cno flate" * 20, "/FlateDecode"),
    "no drawing at all": lambda writer, page: set_contents(writer, page, b"\x00\xff ( ] >> garbage BT qq" * 20),
    "contents missing": lambda writer, page: page.__setitem__(NameObject("/Contents"), IndirectObject(9999, 0, writer)),
    "fonts missing": lambda writer, page: page.pop("/Resources"),
}


@pytest.fixture(params=list(BROKEN_PAGES), ids=str)
def broken(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A PDF whose second page is of no use."""
    return write(tmp_path / "broken.pdf", on_page_2(BROKEN_PAGES[request.param]))


def test_a_broken_page_ends_the_reading_and_is_named(broken: Path) -> None:
    pages = read_pages(broken, dpi=DPI)
    assert next(pages).number == 1
    with pytest.raises(BrokenPageError, match=r"broken\.pdf, page 2: "):
        next(pages)


def test_skipping_a_broken_page_warns_and_keeps_the_others(broken: Path) -> None:
    with pytest.warns(PageWarning, match=r"broken\.pdf, page 2: .*Skipped"):
        pages = list(read_pages(broken, dpi=DPI, on_error="skip"))
    assert [(page.number, page.label, page.text) for page in pages] == [
        (1, "1", "Page 1 speaks"),
        (3, "3", "Page 3 speaks"),
    ]


def test_a_scan_whose_picture_is_lost_is_broken(tmp_path: Path) -> None:
    def lose(writer: PdfWriter, page: PageObject) -> None:
        (picture,) = page["/Resources"]["/XObject"].values()  # type: ignore[index]
        picture.get_object()._data = b""

    scan = write(tmp_path / "scan.pdf", on_page_2(lose), source=scan_bytes("navy", "navy", "navy"))
    with pytest.warns(PageWarning, match=r"scan\.pdf, page 2: nothing of it can be drawn"):
        assert [page.number for page in read_pages(scan, dpi=DPI, on_error="skip")] == [1, 3]


def test_a_scan_has_a_picture_and_no_text(tmp_path: Path) -> None:
    (tmp_path / "scan.pdf").write_bytes(scan_bytes("blue"))
    (page,) = read_pages(tmp_path / "scan.pdf", dpi=DPI)
    red, green, blue = page.image.resize((1, 1)).getpixel((0, 0))  # type: ignore[misc]
    assert page.text == ""
    assert blue > 250 and red < 5 and green < 5


def test_a_page_without_contents_is_a_blank_page(tmp_path: Path) -> None:
    blank = write(tmp_path / "blank.pdf", on_page_2(lambda writer, page: page.pop("/Contents")))
    page = list(read_pages(blank, dpi=DPI))[1]
    assert (page.text, page.image.getextrema()) == ("", ((255, 255),) * 3)


def test_a_page_that_shows_something_is_kept_although_poppler_complains(tmp_path: Path) -> None:
    def spoil(writer: PdfWriter, page: PageObject) -> None:
        set_contents(writer, page, page.get_contents().get_data() + b" ] >> garbage qq")  # type: ignore[union-attr]

    spoiled = write(tmp_path / "spoiled.pdf", on_page_2(spoil))
    assert [page.text for page in read_pages(spoiled, dpi=DPI)][1] == "Page 2 speaks"


def test_a_repaired_file_keeps_all_pages_even_blank_ones(tmp_path: Path) -> None:
    """poppler complains about the file on every page, which must not count against the blank one."""
    path = write(tmp_path / "tail.pdf", on_page_2(lambda writer, page: page.pop("/Contents")))
    path.write_bytes(path.read_bytes()[:-30])
    assert [page.label for page in read_pages(path, dpi=DPI)] == ["1", "2", "3"]


def test_a_page_missing_from_the_page_tree_is_reported(tmp_path: Path) -> None:
    def drop(writer: PdfWriter) -> None:
        writer._root_object["/Pages"]["/Kids"][1] = NumberObject(7)  # type: ignore[index]

    path = write(tmp_path / "gap.pdf", drop)
    with pytest.raises(BrokenPageError, match=r"gap\.pdf, page 2: .*missing"):
        list(read_pages(path, dpi=DPI))


def test_a_page_without_a_size_is_not_called_missing(tmp_path: Path) -> None:
    path = write(tmp_path / "empty.pdf", on_page_2(lambda writer, page: set_box(page, 100, 100, 100, 100)))
    with pytest.warns(PageWarning, match=r"empty\.pdf, page 2: its size is absurd, 0 by 0 points"):
        assert [page.text for page in read_pages(path, dpi=DPI, on_error="skip")] == ["Page 1 speaks", "Page 3 speaks"]


def test_a_file_of_broken_pages_only_is_refused_even_when_skipping(tmp_path: Path) -> None:
    def shrink(writer: PdfWriter) -> None:
        for page in writer.pages:
            set_box(page, 0, 0, 0.01, 0.01)

    path = write(tmp_path / "dust.pdf", shrink)
    with (
        pytest.warns(PageWarning),
        pytest.raises(PageError, match="none of its 3 pages can be read; the first: .*page 1: its size"),
    ):
        list(read_pages(path, dpi=DPI, on_error="skip"))


FORGED = "Annual\nPages:           {count}\nPage    2 size:  612 x 792 pts\nEncrypted:      no"


@pytest.mark.parametrize("count", [1, 2500])
def test_a_title_cannot_say_how_many_pages_there_are(tmp_path: Path, count: int) -> None:
    titled = write(tmp_path / "a.pdf", lambda writer: writer.add_metadata({"/Title": FORGED.format(count=count)}))

    assert count_pages(titled) == 3
    assert [page.text for page in read_pages(titled, dpi=DPI)] == ["Page 1 speaks", "Page 2 speaks", "Page 3 speaks"]


def test_a_title_cannot_give_a_missing_page_a_size(tmp_path: Path) -> None:
    def drop(writer: PdfWriter) -> None:
        writer._root_object["/Pages"]["/Kids"][1] = NumberObject(7)  # type: ignore[index]
        writer.add_metadata({"/Title": FORGED.format(count=3)})

    with pytest.raises(BrokenPageError, match=r"gap\.pdf, page 2: .*missing"):
        list(read_pages(write(tmp_path / "gap.pdf", drop), dpi=DPI))
