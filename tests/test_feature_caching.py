"""The vision tower reads a page once, whoever asks again: the postprocessor, the index, the command line."""

import json
import pickle
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from llama_index.core.schema import Document, ImageDocument, ImageNode, NodeWithScore, TextNode
from PIL import Image
from tiny_manual import tiny_manual
from tiny_retriever import PARITY, colqwen3

from llama_index_ziprerank import ColPaliIndex, ZipRerankPostprocessor
from llama_index_ziprerank.cli import main
from llama_index_ziprerank.nodes import NodeImageError
from llama_index_ziprerank.reranking import ListwiseReranker
from llama_index_ziprerank.retrieval.encoder import MultiVectorEncoder

QUESTION = "set the line width of an axis"
PAGES = [PARITY.parent / "pages" / f"small-{i:03d}.png" for i in range(12, 18)]


@pytest.fixture(scope="module")
def retriever(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(colqwen3(tmp_path_factory.mktemp("retriever")))


@pytest.fixture(scope="module")
def encoder(retriever: str) -> MultiVectorEncoder:
    return MultiVectorEncoder.from_pretrained(retriever, device="cpu")


@pytest.fixture(scope="module")
def model() -> ListwiseReranker:
    return ListwiseReranker.from_pretrained(str(PARITY), device="cpu")


@pytest.fixture
def postprocessor(model: ListwiseReranker) -> Iterator[ZipRerankPostprocessor]:
    model.cache = None
    yield ZipRerankPostprocessor.from_reranker(model, top_n=20)
    model.cache = None


@pytest.fixture
def looked(model: ListwiseReranker) -> Iterator[Callable[[], int]]:
    """How many pages the vision tower has read since the last time this was asked."""
    pages: list[int] = []
    hook = model.model.model.visual.register_forward_pre_hook(
        lambda tower, positional, named: pages.append(len(named["grid_thw"])), with_kwargs=True
    )

    def count() -> int:
        seen = sum(pages)
        pages.clear()
        return seen

    yield count
    hook.remove()


def _documents(*numbers: int) -> list[Document]:
    return [
        ImageDocument(id_=PAGES[i].stem, image_path=str(PAGES[i]), text=f"page {i}", metadata={"file_path": "a.pdf"})
        for i in numbers
    ]


def _ask(index: ColPaliIndex, postprocessor: ZipRerankPostprocessor) -> list[tuple[str, float]]:
    nodes = index.as_retriever(similarity_top_k=20).retrieve(QUESTION)
    return [
        (node.node_id, round(node.get_score(), 5))
        for node in postprocessor.postprocess_nodes(nodes, query_str=QUESTION)
    ]


def test_an_index_warms_the_pages_it_is_built_of_and_those_inserted_or_refreshed_later(
    encoder: MultiVectorEncoder, postprocessor: ZipRerankPostprocessor, looked: Callable[[], int], tmp_path: Path
) -> None:
    text = Document(id_="text", text="The line width of an axis is set by lwidth.")
    documents = [*_documents(0, 1), text]
    with ColPaliIndex.from_documents(
        documents, encoder, persist_dir=tmp_path / "index", cache_features_for=postprocessor
    ) as index:
        assert postprocessor.cache_dir == str(index.feature_dir)
        assert looked() == 3
        index.insert(_documents(2)[0])
        index.refresh_ref_docs(_documents(0, 1, 2, 3))
        assert looked() == 2
        warm = _ask(index, postprocessor)
        assert looked() == 0
        assert len(warm) == 5
        index.delete_ref_doc(PAGES[3].stem)
        assert len(list(index.feature_dir.rglob("*.safetensors"))) == 4
        index.persist(tmp_path / "copy")
    with ColPaliIndex.load(tmp_path / "copy", model=encoder) as copy:
        assert len(list(copy.feature_dir.rglob("*.safetensors"))) == 4
        assert postprocessor.cache_pages(copy.nodes()) == 0


def test_a_warm_answer_is_the_cold_one(
    encoder: MultiVectorEncoder, postprocessor: ZipRerankPostprocessor, tmp_path: Path
) -> None:
    with ColPaliIndex.from_documents(_documents(*range(6)), encoder, persist_dir=tmp_path / "index") as index:
        cold = _ask(index, postprocessor)
        postprocessor.use_cache_dir(index.feature_dir)
        assert [_ask(index, postprocessor) for _ in range(2)] == [cold, cold]
    with ColPaliIndex.load(tmp_path / "index", model=encoder, cache_features_for=postprocessor) as index:
        assert _ask(index, postprocessor) == cold


def test_a_temporary_index_is_warm_in_memory_and_leaves_no_folder(encoder: MultiVectorEncoder) -> None:
    postprocessor = ZipRerankPostprocessor(model=str(PARITY), device="cpu")
    with ColPaliIndex.from_documents(_documents(0, 1), encoder, cache_features_for=postprocessor) as index:
        assert postprocessor.cache_pages(index.nodes()) == 0
        folder = index.feature_dir
    assert postprocessor.cache_dir is None
    assert not folder.exists()


def test_a_second_index_whose_features_go_to_the_first_ones_folder_is_warned_of(
    encoder: MultiVectorEncoder, postprocessor: ZipRerankPostprocessor, tmp_path: Path
) -> None:
    for _ in range(2):  # opening the first one again is no second one
        with ColPaliIndex.from_documents(
            _documents(0), encoder, persist_dir=tmp_path / "first", cache_features_for=postprocessor
        ) as first:
            pass
    with pytest.warns(UserWarning, match=f"in {first.feature_dir}, the folder of another index"):
        ColPaliIndex.from_documents(
            _documents(1), encoder, persist_dir=tmp_path / "second", cache_features_for=postprocessor
        ).close()


def test_a_folder_that_is_no_indexs_serves_several(encoder: MultiVectorEncoder, tmp_path: Path) -> None:
    postprocessor = ZipRerankPostprocessor(model=str(PARITY), device="cpu", cache_dir=str(tmp_path / "features"))
    for name in ("first", "second"):
        ColPaliIndex.from_documents(
            _documents(0), encoder, persist_dir=tmp_path / name, cache_features_for=postprocessor
        ).close()
    assert len(list((tmp_path / "features").rglob("*.safetensors"))) == 1


def test_the_postprocessor_fills_its_folder_as_it_goes_and_another_one_reads_it(tmp_path: Path) -> None:
    nodes = [NodeWithScore(node=ImageNode(id_=path.stem, image_path=str(path)), score=0.5) for path in PAGES]
    nodes.append(NodeWithScore(node=TextNode(id_="text", text="The line width of an axis."), score=0.4))
    fields = {"model": str(PARITY), "device": "cpu", "cache_dir": str(tmp_path / "features"), "cache_dtype": "int8"}
    first = ZipRerankPostprocessor(**fields)
    assert first.cache_cost(node.node for node in nodes).pages == 7
    expected = [(node.node_id, node.score) for node in first.postprocess_nodes(nodes, query_str=QUESTION)]
    assert first.cache_cost(node.node for node in nodes).pages == 0
    written = {path: path.stat().st_mtime_ns for path in (tmp_path / "features").rglob("*.safetensors")}
    assert len(written) == 7
    again = ZipRerankPostprocessor.from_dict(json.loads(json.dumps(first.to_dict())))
    for copy in (again, pickle.loads(pickle.dumps(first))):
        assert [(node.node_id, node.score) for node in copy.postprocess_nodes(nodes, query_str=QUESTION)] == expected
    assert written == {path: path.stat().st_mtime_ns for path in (tmp_path / "features").rglob("*.safetensors")}


def test_without_a_cache_nothing_is_kept_and_warming_says_so() -> None:
    postprocessor = ZipRerankPostprocessor(model=str(PARITY), device="cpu", cache_memory_bytes=0)
    for ask in (postprocessor.cache_pages, postprocessor.cache_cost):
        with pytest.raises(ValueError, match="no cache.*Pass a cache_dir"):
            ask([ImageNode(image_path=str(PAGES[0]))])


def test_a_damaged_image_is_named_by_its_node(postprocessor: ZipRerankPostprocessor, tmp_path: Path) -> None:
    (tmp_path / "bad.png").write_bytes(PAGES[0].read_bytes()[:200])
    for path in (tmp_path / "bad.png", tmp_path / "missing.png"):
        node = NodeWithScore(node=ImageNode(id_="the bad one", image_path=str(path)), score=1.0)
        with pytest.raises(NodeImageError, match="'the bad one'"):
            postprocessor.postprocess_nodes([node], query_str=QUESTION)


def test_the_command_line_says_the_size_then_warms_and_asks_warm(
    retriever: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    manual, folder = tiny_manual(tmp_path / "manual.pdf"), tmp_path / "index"

    def run(*arguments: object) -> str:
        with pytest.raises(SystemExit) as exit:
            main([str(argument) for argument in arguments])
        printed = capsys.readouterr()
        assert exit.value.code in (0, None), printed.err
        return printed.out + printed.err

    build = ("index", manual, "--to", folder, "--retriever", retriever, "--warm", PARITY, "--warm-dtype", "int8")
    build += ("--sides", "512,256")
    said = run(*build)
    files = {path: path.stat().st_mtime_ns for path in (folder / "features").rglob("*.safetensors")}
    size = sum(path.stat().st_size for path in files)
    with ColPaliIndex.load(folder) as index:
        assert len(files) == 2 * index.store.count() > 0
        assert all("int8" in path.parent.parent.name for path in files)
    told = float(said.split("will take ")[1].split(" MB")[0])
    assert size / 1e6 <= told <= size / 1e6 + 0.1 + len(files) * 0.0011
    assert "of 0 pages" in run(*build)
    ask = ("ask", QUESTION, "--index", folder, "--model", PARITY, "--json")
    for sides, fresh in (("512,256", False), ("300", True)):
        assert json.loads(run(*ask, "--sides", sides).split("\n}")[0] + "\n}")["pages"]
        now = {path: path.stat().st_mtime_ns for path in (folder / "features").rglob("*.safetensors")}
        assert (now == files) is not fresh


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--warm-dtype", "int8"], "--warm nano"),
        (["--warm", "nano", "--warm-dtype", "int4"], "'int4'"),
        (["--sides", "512"], "--warm nano"),
        (["--warm", "nano", "--sides", "10"], "sides are the longest sides"),
        (["--warm", "nano", "--sides", "large"], "--sides takes numbers"),
    ],
)
def test_bad_options_are_told_before_the_work(
    options: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as exit:
        main(["index", str(tiny_manual(tmp_path / "manual.pdf")), "--to", str(tmp_path / "index"), *options])
    assert exit.value.code == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "index").exists()


def test_an_image_that_changed_under_its_path_is_read_anew(
    postprocessor: ZipRerankPostprocessor, looked: Callable[[], int], tmp_path: Path
) -> None:
    path = tmp_path / "page.png"
    postprocessor.use_cache_dir(tmp_path / "features")
    for color in ("white", "black", "white"):
        Image.new("RGB", (64, 96), color).save(path)
        postprocessor.cache_pages([ImageNode(image_path=str(path))])
    assert looked() == 2
