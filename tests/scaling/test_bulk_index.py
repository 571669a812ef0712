"""What a cluster reads and encodes is what one process would have read and encoded."""

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray
from llama_index.core.schema import Document
from PIL import Image
from pypdf import PdfWriter
from pypdf.generic import ArrayObject, FloatObject, NameObject
from tiny_manual import tiny_manual, write_pdf
from tiny_retriever import colqwen3

from llama_index_ziprerank import ColPaliIndex, PDFPageReader
from llama_index_ziprerank.nodes import node_image
from llama_index_ziprerank.pages.page import PageError, PageWarning
from llama_index_ziprerank.retrieval.encoder import MultiVectorEncoder
from llama_index_ziprerank.scaling.bulk_index import RayEncoder, read_pdfs

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:ray", "ignore:.*removed after:Warning")  # its own
READER = PDFPageReader(dpi=30)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return colqwen3(tmp_path_factory.mktemp("model") / "tiny")


@pytest.fixture(scope="module")
def encoder(model: Path) -> RayEncoder:
    return RayEncoder.from_pretrained(model, "cpu", workers=2)


def _pages(count: int) -> list[Image.Image]:
    return [Image.new("RGB", (64 + 8 * i, 96), (20 * i, 40, 200)) for i in range(count)]


def _seen(page: Document) -> tuple[str, dict[str, Any], bytes]:
    image = node_image(page)
    assert image is not None
    return page.text, page.metadata, image.tobytes()


def test_vectors_come_in_order_and_are_those_of_one_process(model: Path, encoder: RayEncoder) -> None:
    pages = _pages(11)
    plain = MultiVectorEncoder.from_pretrained(model, "cpu")
    ours = list(encoder.stream_images(iter(pages), batch_size=2))
    for vectors, expected in zip(ours, plain.encode_images(pages), strict=True):
        np.testing.assert_allclose(vectors, expected, atol=1e-5)
    assert encoder.fingerprint == plain.fingerprint
    assert list(encoder.stream_images([])) == []


def test_few_pages_are_taken_ahead(encoder: RayEncoder) -> None:
    taken: list[Image.Image] = []
    vectors = encoder.stream_images((taken.append(page) or page for page in _pages(12)), batch_size=1)  # type: ignore[func-returns-value]
    next(vectors)
    assert len(taken) <= 5  # two tasks for each of two workers, and the page that asked for room
    assert len(list(vectors)) == 11


def test_an_index_built_on_a_cluster_answers_as_one_built_here(
    model: Path, encoder: RayEncoder, tmp_path: Path
) -> None:
    paths = [tiny_manual(tmp_path / "a.pdf"), write_pdf(tmp_path / "b.pdf", [["Bars"], ["Lines"], ["Dots"]])]
    here = [page for path in paths for page in READER.load_data(path)]
    there = list(read_pdfs(paths, READER))
    assert {page.node_id: _seen(page) for page in there} == {page.node_id: _seen(page) for page in here}
    with ColPaliIndex.from_documents(there, encoder, tmp_path / "index") as index:
        found = {node.node.node_id: node.score for node in index.as_retriever(similarity_top_k=50).retrieve("Bars")}
    with ColPaliIndex.from_documents(here, model, device="cpu") as index:
        expected = {node.node.node_id: node.score for node in index.as_retriever(similarity_top_k=50).retrieve("Bars")}
    assert len(expected) == len(here)
    assert found == pytest.approx(expected, rel=1e-4)
    with ColPaliIndex.load(tmp_path / "index", device="cpu") as index:
        assert index.encoder.name == str(model)  # a reader needs no cluster


def test_errors_and_warnings_come_over(tmp_path: Path) -> None:
    assert list(read_pdfs([])) == []
    path = tiny_manual(tmp_path / "gap.pdf")
    writer = PdfWriter(clone_from=path)
    writer.pages[1][NameObject("/MediaBox")] = ArrayObject([FloatObject(value) for value in (0, 0, 0.01, 0.01)])
    writer.write(path)
    with pytest.warns(PageWarning, match=r"gap\.pdf, page 2: .*Skipped"):
        pages = list(read_pdfs([path], PDFPageReader(dpi=30, on_error="skip")))
    assert "2" not in {page.metadata["page_label"] for page in pages}
    with pytest.raises(PageError, match=r"gap\.pdf, page 2: "):
        list(read_pdfs([path], READER))


def test_a_worker_that_dies_is_started_again(encoder: RayEncoder) -> None:
    [process] = {ray.get(encoder._workers[0].__ray_call__.remote(lambda _: os.getpid()))}
    os.kill(process, 9)
    assert len(list(encoder.stream_images(_pages(6), batch_size=1))) == 6


def test_more_workers_than_there_is_room_for_are_refused(model: Path) -> None:
    with pytest.raises(
        ValueError, match=r"7 CPUs are needed \(3 workers of 2, and 1 that reads PDFs\), and the Ray cluster has 4"
    ):
        RayEncoder.from_pretrained(model, "cpu", workers=3, num_cpus=2)
    with pytest.raises(ValueError, match=r"1 GPUs are needed \(1 workers of 1\), and the Ray cluster has 0"):
        RayEncoder.from_pretrained(model, "cpu", workers=1, num_gpus=1)
    with pytest.raises(ValueError, match="workers is at least 1, got 0"):
        RayEncoder.from_pretrained(model, "cpu", workers=0)
