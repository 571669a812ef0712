"""What is no readable PDF, is locked, takes too long or crashes a program: refused, and why is said."""

import os
import time
from collections.abc import Callable, Iterator
from math import inf, nan
from pathlib import Path

import pytest
from pypdf import PdfWriter
from pypdf.constants import PageLabelStyle
from pypdf.generic import NameObject, NumberObject
from three_pages import DPI, LETTER, pdf_bytes, write

from llama_index_ziprerank.pages.page import (
    BrokenPageError,
    PageError,
    PageWarning,
    PasswordError,
    PopplerMissingError,
)
from llama_index_ziprerank.pages.pdf import count_pages, read_pages


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
