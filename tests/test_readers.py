"""The laws of PDFPageReader, alone and as the extractor of SimpleDirectoryReader."""

import asyncio
import json
import pickle
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from types import GeneratorType

import pytest
from fsspec.implementations.memory import MemoryFileSystem
from llama_index.core import SimpleDirectoryReader
from llama_index.core.schema import Document, ImageDocument
from PIL import Image

from llama_index_ziprerank.nodes import node_image
from llama_index_ziprerank.pages.page import PageError, PageWarning, PopplerMissingError
from llama_index_ziprerank.readers import PDFPageReader

READER = PDFPageReader(dpi=20)


def pdf_bytes(*colours: str) -> bytes:
    """A PDF of 8.5 by 11 inches with one picture in one colour a page."""
    first, *others = (Image.new("RGB", (85, 110), colour) for colour in colours)
    buffer = BytesIO()
    first.save(buffer, "PDF", save_all=True, append_images=others, resolution=10)
    return buffer.getvalue()


@pytest.fixture
def manual(tmp_path: Path) -> Path:
    path = tmp_path / "books" / "manual.pdf"
    path.parent.mkdir()
    path.write_bytes(pdf_bytes("red", "blue"))
    return path


@pytest.fixture
def remote(manual: Path) -> Iterator[MemoryFileSystem]:
    filesystem = MemoryFileSystem()
    filesystem.pipe("/books/manual.pdf", manual.read_bytes())
    yield filesystem
    filesystem.rm("/books", recursive=True)


def ids(documents: list[Document]) -> list[str]:
    return [document.doc_id for document in documents]


def test_a_pdf_becomes_one_image_document_a_page(manual: Path) -> None:
    documents = READER.load_data(manual)
    assert [type(document) for document in documents] == [ImageDocument] * 2
    assert [document.metadata for document in documents] == [
        {"file_name": "manual.pdf", "file_path": str(manual), "page_label": "1", "page_number": 1},
        {"file_name": "manual.pdf", "file_path": str(manual), "page_label": "2", "page_number": 2},
    ]
    red, blue = (node_image(document) for document in documents)
    assert red is not None and red.size == (170, 220) and red.getpixel((80, 80)) == (254, 0, 0)
    assert blue is not None and blue.getpixel((80, 80)) == (0, 0, 254)


def test_extra_info_is_added_to_every_document(manual: Path) -> None:
    documents = READER.load_data(str(manual), extra_info={"shelf": 3})
    assert [document.metadata["shelf"] for document in documents] == [3, 3]


def test_lazy_loading_draws_a_page_only_when_asked(manual: Path) -> None:
    documents = READER.lazy_load_data(manual)
    assert isinstance(documents, GeneratorType)
    assert next(documents).metadata["page_number"] == 1
    manual.unlink()
    with pytest.warns(PageWarning), pytest.raises(PageError, match="page 2"):
        next(documents)


async def test_async_loading_gives_the_same_documents(manual: Path) -> None:
    assert await READER.aload_data(manual) == READER.load_data(manual)
    together = await asyncio.gather(*(READER.aload_data(manual) for _ in range(4)))
    assert all(documents == together[0] for documents in together)


def test_a_file_on_another_filesystem_reads_as_it_would_here(manual: Path, remote: MemoryFileSystem) -> None:
    documents = READER.load_data("/books/manual.pdf", fs=remote)
    assert ids(documents) == ids(READER.load_data(manual))
    assert documents[0].metadata["file_path"] == "/books/manual.pdf"


def test_errors_name_the_remote_file_and_not_its_copy(remote: MemoryFileSystem) -> None:
    remote.pipe("/books/bad.pdf", b"%PDF-1.7\n")
    with pytest.raises(PageError, match=r"^/books/bad\.pdf: the PDF is damaged"):
        READER.load_data("/books/bad.pdf", fs=remote)
    with pytest.raises(PageError, match=r"^/books/gone\.pdf: cannot be read from MemoryFileSystem"):
        READER.load_data("/books/gone.pdf", fs=remote)


def test_pictures_go_to_files_when_a_folder_is_given(manual: Path, tmp_path: Path) -> None:
    documents = PDFPageReader(image_dir=tmp_path / "pictures").load_data(manual)
    for document, embedded in zip(documents, PDFPageReader().load_data(manual), strict=True):
        assert isinstance(document, ImageDocument) and document.image is None
        assert document.image_path == str(tmp_path / "pictures" / f"{document.doc_id}.png")
        assert node_image(document).tobytes() == node_image(embedded).tobytes()  # type: ignore[union-attr]


@pytest.mark.parametrize("other", [{"dpi": 20}, {"max_side": 100}])
def test_reading_again_in_another_size_leaves_the_pictures_that_are_there(
    manual: Path, tmp_path: Path, other: dict[str, int]
) -> None:
    first = PDFPageReader(image_dir=tmp_path / "pictures").load_data(manual)[0]
    before = node_image(first)
    again = PDFPageReader(image_dir=tmp_path / "pictures", **other).load_data(manual)[0]  # type: ignore[arg-type]

    assert (before.size, node_image(first).size) == ((1237, 1600), (1237, 1600))  # type: ignore[union-attr]
    assert max(node_image(again).size) < 1600  # type: ignore[union-attr]


def test_a_picture_that_someone_reads_is_not_written_over(manual: Path, tmp_path: Path) -> None:
    reader = PDFPageReader(dpi=20, image_dir=tmp_path / "pictures")
    [picture, *_] = [Path(document.image_path) for document in reader.load_data(manual)]  # type: ignore[attr-defined]
    files, whole = set(picture.parent.iterdir()), picture.read_bytes()
    picture.write_bytes(b"half a pic")
    with picture.open("rb") as under_way:
        reader.load_data(manual)
        assert under_way.read() == b"half a pic"
    assert (picture.read_bytes(), set(picture.parent.iterdir())) == (whole, files)


@pytest.mark.parametrize("name", ["file", "file/pictures"])
def test_a_file_in_the_place_of_the_picture_folder_is_named(manual: Path, tmp_path: Path, name: str) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(PageError, match=f"image_dir is {tmp_path / name}, and a file lies there"):
        PDFPageReader(image_dir=tmp_path / name).load_data(manual)


def test_simple_directory_reader_keeps_ids_and_adds_its_metadata(manual: Path) -> None:
    documents = SimpleDirectoryReader(str(manual.parent), file_extractor={".pdf": READER}).load_data()
    assert ids(documents) == ids(READER.load_data(manual))
    assert [document.metadata["page_label"] for document in documents] == ["1", "2"]
    assert documents[0].metadata["file_type"] == "application/pdf"
    assert documents[0].metadata["file_path"] == str(manual)


def test_simple_directory_reader_may_number_documents_by_file_name(manual: Path) -> None:
    loader = SimpleDirectoryReader(str(manual.parent), file_extractor={".pdf": READER}, filename_as_id=True)
    assert ids(loader.load_data()) == [f"{manual}_part_0", f"{manual}_part_1"]


async def test_simple_directory_reader_reads_asynchronously_and_from_other_filesystems(
    manual: Path, remote: MemoryFileSystem
) -> None:
    loader = SimpleDirectoryReader("/books", file_extractor={".pdf": READER}, fs=remote)
    assert ids(await loader.aload_data()) == ids(loader.load_data()) == ids(READER.load_data(manual))


def test_simple_directory_reader_never_swallows_a_missing_poppler(
    manual: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loader = SimpleDirectoryReader(str(manual.parent), file_extractor={".pdf": READER})
    monkeypatch.setenv("PATH", "")
    with pytest.raises(ImportError, match="poppler-utils"):
        loader.load_data()
    with pytest.raises(PopplerMissingError):
        READER.load_data(manual)


def test_a_reader_survives_storage_without_its_password() -> None:
    reader = PDFPageReader(dpi=99, on_error="skip", image_dir=Path("pictures"), password="secret")
    stored = json.loads(reader.to_json())
    assert "secret" not in str(stored) + repr(reader)
    assert PDFPageReader.from_dict(stored) == PDFPageReader(dpi=99, on_error="skip", image_dir="pictures")
    assert stored["class_name"] == "PDFPageReader"


def test_a_misspelt_choice_is_refused_and_what_was_serialised_is_not() -> None:
    with pytest.raises(ValueError, match="max_page"):
        PDFPageReader(max_page=3)  # type: ignore[call-arg]
    reader = PDFPageReader(max_pages=3)
    assert PDFPageReader.model_validate_json(reader.to_json()) == PDFPageReader(**reader.to_dict()) == reader


def test_worker_processes_get_the_password() -> None:
    assert pickle.loads(pickle.dumps(PDFPageReader(password="secret"))).password == "secret"


@pytest.mark.parametrize("field", ["dpi", "max_side", "max_pages", "timeout", "file_timeout", "max_memory"])
def test_a_reader_with_a_senseless_limit_cannot_be_made(field: str) -> None:
    with pytest.raises(ValueError, match=field):
        PDFPageReader(**{field: 0})  # type: ignore[arg-type]
