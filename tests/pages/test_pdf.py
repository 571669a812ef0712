"""The laws of reading a PDF: what a page carries, what is refused, and what a broken page does to its file."""

import os
import shutil
import time
import weakref
from collections.abc import Callable, Iterator
from io import BytesIO
from math import inf, isnan, nan
from pathlib import Path

import pytest
from PIL import Image
from pypdf import PageObject, PdfReader, PdfWriter
from pypdf.constants import PageLabelStyle
from pypdf.generic import (
    ArrayObject,
    DictionaryObject,
    FloatObject,
    IndirectObject,
    NameObject,
    NumberObject,
    StreamObject,
)

from llama_index_ziprerank.pages.page import (
    BrokenPageError,
    PageError,
    PageWarning,
    PasswordError,
    PopplerMissingError,
)
from llama_index_ziprerank.pages.pdf import count_pages, read_pages

DPI = 20  # small pictures: these tests look at sizes and colours, not at letters
LETTER = (170, 220)  # 8.5 x 11 inches at DPI


def pdf_bytes(pages: int = 3) -> bytes:
    """A PDF of US Letter pages that say "Page 1 speaks", "Page 2 speaks" and so on."""
    writer = PdfWriter()
    font = DictionaryObject({NameObject("/Type"): NameObject("/Font"), NameObject("/Subtype"): NameObject("/Type1")})
    font[NameObject("/BaseFont")] = NameObject("/Helvetica")
    fonts = DictionaryObject({NameObject("/F1"): writer._add_object(font)})
    for number in range(1, pages + 1):
        page = writer.add_blank_page(612, 792)
        page[NameObject("/Resources")] = DictionaryObject({NameObject("/Font"): fonts})
        set_contents(writer, page, f"BT /F1 24 Tf 72 700 Td (Page {number} speaks) Tj ET".encode())
    return saved(writer.write)


def scan_bytes(*colours: str) -> bytes:
    """A PDF whose pages hold nothing but a JPEG picture in one colour each."""
    first, *others = (Image.new("RGB", (61, 79), colour) for colour in colours)
    return saved(lambda buffer: first.save(buffer, format="PDF", save_all=True, append_images=others))


def saved(save: Callable[[BytesIO], object]) -> bytes:
    buffer = BytesIO()
    save(buffer)
    return buffer.getvalue()


def write(path: Path, change: Callable[[PdfWriter], object] = lambda writer: None, source: bytes | None = None) -> Path:
    """Write the three-page PDF after `change` had its way with it."""
    writer = PdfWriter(clone_from=PdfReader(BytesIO(source or pdf_bytes())))
    change(writer)
    writer.write(path)
    return path


def on_page_2(change: Callable[[PdfWriter, PageObject], object]) -> Callable[[PdfWriter], object]:
    return lambda writer: change(writer, writer.pages[1])


def set_box(page: PageObject, *values: float) -> None:
    corners = [NameObject("/NaN") if isnan(value) else FloatObject(value) for value in values]
    page[NameObject("/MediaBox")] = ArrayObject(corners)
    page.pop("/CropBox", None)


def set_contents(writer: PdfWriter, page: PageObject, content: bytes, encoding: str | None = None) -> None:
    stream = StreamObject()
    stream._data = content
    if encoding:
        stream[NameObject("/Filter")] = NameObject(encoding)
    page[NameObject("/Contents")] = writer._add_object(stream)


@pytest.fixture
def manual(tmp_path: Path) -> Path:
    return write(tmp_path / "manual.pdf")


def test_every_page_comes_once_with_its_number_text_and_picture(manual: Path) -> None:
    pages = list(read_pages(manual, dpi=DPI))

    assert [page.number for page in pages] == [page.id.number for page in pages] == [1, 2, 3]
    assert [page.text for page in pages] == ["Page 1 speaks", "Page 2 speaks", "Page 3 speaks"]
    assert {(page.image.mode, page.image.size) for page in pages} == {("RGB", LETTER)}
    assert {(page.file_name, page.file_path) for page in pages} == {("manual.pdf", str(manual))}


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


def test_pages_are_counted_as_they_are_read(manual: Path, tmp_path: Path) -> None:
    locked = write(tmp_path / "locked.pdf", lambda writer: writer.encrypt("geheim", algorithm="RC4-128"))

    assert count_pages(manual) == count_pages(locked, password="geheim") == 3
    with pytest.raises(PasswordError, match="no password was given"):
        count_pages(locked)
    with pytest.raises(PageError, match="has 3 pages, the limit is 2"):
        count_pages(manual, max_pages=2)


def lie_about_the_count(writer: PdfWriter) -> None:
    writer._root_object["/Pages"][NameObject("/Count")] = NumberObject(10**9)  # type: ignore[index]


def write_empty(path: Path) -> None:
    PdfWriter().write(path)


BAD_FILES: dict[str, tuple[Callable[[Path], object], type[PageError], str]] = {
    "missing": (lambda path: None, PageError, "No such file"),
    "a directory": (lambda path: path.mkdir(), PageError, "Is a directory"),
    "empty": (lambda path: path.touch(), PageError, "0 bytes"),
    "no PDF": (lambda path: path.write_text("<html>Not found</html>"), PageError, "not a PDF; it begins with b'<html>"),
    "header only": (lambda path: path.write_bytes(b"%PDF-1.7\n"), PageError, "damaged or cut off"),
    "cut in half": (lambda path: path.write_bytes(pdf_bytes()[:700]), PageError, "damaged or cut off"),
    "no pages": (write_empty, PageError, "holds no pages"),
    "a lie about the pages": (lambda path: write(path, lie_about_the_count), PageError, "holds no pages"),
    "too many pages": (lambda path: path.write_bytes(pdf_bytes(6)), PageError, "6 pages, the limit is 5"),
    "encrypted": (
        lambda path: write(path, lambda writer: writer.encrypt("secret", algorithm="RC4-128")),
        PasswordError,
        "encrypted, and no password was given",
    ),
}


@pytest.mark.parametrize("kind", list(BAD_FILES), ids=str)
def test_a_bad_file_is_refused_at_once_and_named(tmp_path: Path, kind: str) -> None:
    make, error, message = BAD_FILES[kind]
    make(tmp_path / "bad.pdf")
    with pytest.raises(error, match=rf"bad\.pdf: .*{message}"):
        read_pages(tmp_path / "bad.pdf", max_pages=5, on_error="skip")


def test_the_password_opens_an_encrypted_file_and_another_does_not(tmp_path: Path) -> None:
    path = write(tmp_path / "locked.pdf", lambda writer: writer.encrypt("geheim", "owner", algorithm="RC4-128"))
    assert [page.text for page in read_pages(path, dpi=DPI, password="geheim")][2] == "Page 3 speaks"
    with pytest.raises(PasswordError, match="the password given does not open it"):
        read_pages(path, password="wrong")


def test_a_file_locked_for_its_owner_only_needs_no_password(tmp_path: Path) -> None:
    def lock(writer: PdfWriter) -> None:
        writer.encrypt("", "owner", algorithm="RC4-128", permissions_flag=0)  # type: ignore[arg-type]

    path = write(tmp_path / "owned.pdf", lock)
    for password in (None, "owner", "of another file"):  # one reader reads a folder of many files
        assert [page.label for page in read_pages(path, dpi=DPI, password=password)] == ["1", "2", "3"]
        assert count_pages(path, password=password) == 3


@pytest.mark.parametrize("password", ["schlüssel", "пароль"])
def test_a_password_beyond_ascii_opens_an_old_file(tmp_path: Path, password: str) -> None:
    def lock(writer: PdfWriter) -> None:
        writer.set_page_label(0, 2, style=PageLabelStyle.LOWERCASE_ROMAN)
        writer.encrypt(password, "owner", algorithm="RC4-128")

    pages = list(read_pages(write(tmp_path / "locked.pdf", lock), dpi=DPI, password=password))
    assert [page.label for page in pages] == ["i", "ii", "iii"]
    assert pages[2].text == "Page 3 speaks"


@pytest.mark.parametrize(
    "choice",
    [
        {"dpi": 0},
        {"max_side": 0},
        {"max_pages": 0},
        {"timeout": 0},
        {"timeout": inf},
        {"file_timeout": nan},
        {"max_memory": 127},
        {"on_error": "shrug"},
    ],  # fmt: skip
)
def test_senseless_choices_are_refused(manual: Path, choice: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=str(*choice)):
        read_pages(manual, **choice)  # type: ignore[arg-type]


def test_without_poppler_the_error_says_what_to_install(manual: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    with pytest.raises(PopplerMissingError, match=r"manual\.pdf.*poppler-utils") as caught:
        read_pages(manual)
    assert isinstance(caught.value, PageError)


@pytest.fixture
def hang(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], None]]:
    """Put a program that never ends in the place of one of poppler's."""

    def replace(program: str) -> None:
        folder = tmp_path / "bin"
        folder.mkdir()
        stuck = folder / program
        stuck.write_text('#!/bin/sh\n[ "$1" = -v ] && exit 0\nexec sleep 30\n')
        stuck.chmod(0o755)
        monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")

    yield replace


def test_a_page_that_takes_too_long_to_draw_is_broken(manual: Path, hang: Callable[[str], None]) -> None:
    hang("pdftoppm")
    with pytest.raises(BrokenPageError, match=r"manual\.pdf, page 1: drawing it took longer than 2 s"):
        list(read_pages(manual, timeout=2))


def test_a_file_that_takes_too_long_to_open_is_refused(manual: Path, hang: Callable[[str], None]) -> None:
    hang("pdfinfo")
    with pytest.raises(PageError, match=r"manual\.pdf: opening it took longer than 0\.5 s"):
        read_pages(manual, timeout=0.5)


def test_a_page_whose_text_cannot_be_read_keeps_its_picture(manual: Path, hang: Callable[[str], None]) -> None:
    hang("pdftotext")
    with pytest.warns(PageWarning, match=r"page 1: reading its text took longer than 2 s.*no text"):
        page = next(read_pages(manual, dpi=DPI, timeout=2))
    assert (page.text, page.image.size) == ("", LETTER)


def test_a_file_that_takes_too_long_in_all_ends_with_an_error(manual: Path) -> None:
    pages = read_pages(manual, dpi=DPI, file_timeout=0.001)
    assert next(pages).number == 1
    with pytest.raises(PageError, match=r"manual\.pdf: reading 1 of its 3 pages took longer than 0\.001 s in all"):
        next(pages)


def test_time_between_two_pages_is_the_callers_own(manual: Path) -> None:
    pages = read_pages(manual, dpi=DPI, file_timeout=30)
    next(pages)
    time.sleep(0.2)
    assert [page.number for page in pages] == [2, 3]


def test_a_pipe_in_the_place_of_a_file_is_refused_and_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.pdf")
    with pytest.raises(PageError, match=r"pipe\.pdf: a pipe or a device"):
        read_pages(tmp_path / "pipe.pdf")


def test_a_path_with_a_zero_byte_is_refused() -> None:
    with pytest.raises(PageError, match="no path"):
        read_pages("book\0.pdf")


def test_a_file_name_that_is_no_text_is_read_and_can_be_stored(tmp_path: Path) -> None:
    path = os.fsdecode(os.fsencode(tmp_path) + b"/b\xffok.pdf")
    write(Path(path))
    assert {page.file_name for page in read_pages(path, dpi=DPI)} == {"b\N{REPLACEMENT CHARACTER}ok.pdf"}


@pytest.mark.parametrize("program", ["pdfinfo", "pdftotext", "pdftoppm"])
def test_a_program_that_crashes_takes_nothing_along(
    manual: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, program: str
) -> None:
    crashing = tmp_path / "bin" / program
    crashing.parent.mkdir()
    crashing.write_text("#!/bin/sh\nkill -SEGV $$\n")
    crashing.chmod(0o755)
    monkeypatch.setenv("PATH", f"{crashing.parent}{os.pathsep}{os.environ['PATH']}")
    if program == "pdftotext":
        with pytest.warns(PageWarning, match=r"reading its text crashed the program \(SIGSEGV\).*no text"):
            assert [page.text for page in read_pages(manual, dpi=DPI)] == [""] * 3
    else:
        with pytest.raises(PageError, match=r"manual\.pdf.*(opening|drawing) it crashed the program \(SIGSEGV\)"):
            next(read_pages(manual, dpi=DPI))
