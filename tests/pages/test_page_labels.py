"""The laws of page labels: the PDF's own, read elsewhere, and never a reason to lose a page."""

from pathlib import Path

import pytest
from pypdf import PdfWriter

from llama_index_ziprerank.pages.bounded import Bounds
from llama_index_ziprerank.pages.labels import LabelError, read_labels
from llama_index_ziprerank.pages.page import PageWarning, encodable
from llama_index_ziprerank.pages.pdf import read_pages
from llama_index_ziprerank.pages.poppler import PdfFile


def labelled(path: Path, tree: bytes, pages: int = 1, *, before: bytes = b"") -> Path:
    """Write a PDF of blank pages whose catalogue holds `tree` as its page labels, `before` standing before it all."""
    kids = b" ".join(b"%d 0 R" % (3 + number) for number in range(pages))
    objects = [
        b"<</Type/Catalog/Pages 2 0 R/PageLabels %s>>" % tree,
        b"<</Type/Pages/Kids[%s]/Count %d>>" % (kids, pages),
        *[b"<</Type/Page/Parent 2 0 R/MediaBox[0 0 150 200]>>"] * pages,
    ]
    out, places = b"%PDF-1.7\n" + before, []
    for number, body in enumerate(objects, start=1):
        places.append(len(out))
        out += b"%d 0 obj\n%s\nendobj\n" % (number, body)
    table = b"".join(b"%010d 00000 n \n" % place for place in places)
    size = len(objects) + 1
    trailer = b"trailer\n<</Root 1 0 R/Size %d>>\nstartxref\n%d\n%%%%EOF\n" % (size, len(out))
    path.write_bytes(out + b"xref\n0 %d\n0000000000 65535 f \n" % size + table + trailer)
    return path


def labels(path: Path) -> list[str]:
    return [page.label for page in read_pages(path, dpi=20)]


def test_labels_are_read_in_another_process(tmp_path: Path) -> None:
    assert labels(labelled(tmp_path / "book.pdf", b"<</Nums[0<</S/r>>2<</S/D/P(A-)>>]>>", 3)) == ["i", "ii", "A-1"]


@pytest.mark.parametrize("length", [10, 150, 100_000])
def test_a_label_is_one_line_of_at_most_100_letters(tmp_path: Path, length: int) -> None:
    prefix = rb"\033[31m\n" + b"x" * length
    (label,) = labels(labelled(tmp_path / "long.pdf", b"<</Nums[0<</P(" + prefix + b")>>]>>"))
    assert label.isprintable() and len(label) <= 100
    assert label.endswith("[31m xxxxxxxxxx") or length > 10  # pypdf itself may give up long ones


@pytest.mark.filterwarnings("ignore::llama_index_ziprerank.pages.page.PageWarning")  # pypdf 7 itself gives numbers
@pytest.mark.parametrize("tree", [b"(no tree)", b"<</Nums[0 7]>>", b"<</Nums[(a)<<>>]>>"])
def test_labels_that_are_none_give_way_to_numbers(tmp_path: Path, tree: bytes) -> None:
    assert labels(labelled(tmp_path / "odd.pdf", tree, 2)) == ["1", "2"]


@pytest.mark.parametrize("algorithm", ["RC4-128", "AES-128", "AES-256"])
def test_labels_of_an_encrypted_file_are_read(tmp_path: Path, algorithm: str) -> None:
    writer = PdfWriter(clone_from=labelled(tmp_path / "book.pdf", b"<</Nums[0<</S/r>>]>>", 2))
    writer.encrypt(user_password="", owner_password="owner", algorithm=algorithm)
    writer.write(tmp_path / "locked.pdf")
    assert labels(tmp_path / "locked.pdf") == ["i", "ii"]


def test_a_file_that_pypdf_cannot_read_has_numbers_and_a_warning(tmp_path: Path) -> None:
    path = labelled(tmp_path / "odd.pdf", b"<</Nums[0<</S/r>>]>>", 2)
    path.write_bytes(path.read_bytes().replace(b"%PDF-1.7\n", b"%PDF-1.7\n%" + b"x" * 5000 + b"\n"))
    with pytest.warns(PageWarning, match=r"odd\.pdf: page labels cannot be read, page numbers stand in \(.+\)"):
        assert labels(path) == ["1", "2"]


def test_why_labels_cannot_be_read_is_told(tmp_path: Path) -> None:
    path = labelled(tmp_path / "book.pdf", b"<</Nums[0<</S/r>>]>>", 2)
    with pytest.raises(LabelError, match="pypdf sees 2 pages, poppler 5"):
        read_labels(PdfFile(path, str(path), None, Bounds(60, 2048)), 5)
    with pytest.raises(LabelError, match=r"reading them took longer than 0\.001 s"):
        read_labels(PdfFile(path, str(path), None, Bounds(0.001, 2048)), 2)


def test_a_file_that_may_hold_labels_and_holds_none_is_not_counted_by_pypdf(tmp_path: Path) -> None:
    path = labelled(tmp_path / "book.pdf", b"<</Nums[0<</S/r>>]>>", 2)
    path.write_bytes(path.read_bytes().replace(b"/PageLabels", b"/PageLayout"))
    assert read_labels(PdfFile(path, str(path), None, Bounds(60, 2048)), 5) == [""] * 5


def test_labels_beyond_the_first_mebibyte_of_the_file_are_found(tmp_path: Path) -> None:
    path = labelled(tmp_path / "large.pdf", b"<</Nums[0<</P(A)>>]>>")
    padding = (1 << 20) - path.read_bytes().index(b"/PageLabels") - 6  # the mark lies across two chunks
    path = labelled(path, b"<</Nums[0<</P(A)>>]>>", before=b"%" + b"x" * (padding - 2) + b"\n")
    assert labels(path) == ["A"]


@pytest.mark.parametrize(("odd", "whole"), [("a\ud800", "a\ufffd"), ("\ud83d\ude00", "\U0001f600"), ("book", "book")])
def test_lone_surrogates_become_replacement_characters(odd: str, whole: str) -> None:
    assert encodable(odd) == whole
