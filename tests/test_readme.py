"""The Python of README and guides runs as it stands, page by page from top to bottom.

But for models and servers: nano takes the place of the large models, Qdrant's memory that of a server.
"""

import re
from importlib.metadata import metadata
from pathlib import Path

import pytest
from llama_index.core import MockEmbedding, Settings, VectorStoreIndex
from llama_index.core.base.response.schema import Response
from llama_index.core.llms import MockLLM
from qdrant_client import QdrantClient
from tiny_manual import tiny_manual

from llama_index_ziprerank import ColPaliIndex, PDFPageReader
from llama_index_ziprerank.nodes import document_to_page_node

ROOT = Path(__file__).parent.parent
PAGES = ("README.md", "docs/index.md")
GUIDES = sorted(path.name for path in (ROOT / "docs" / "guides").glob("*.md") if "```python" in path.read_text("utf-8"))
GUIDES.remove("scaling.md")  # needs Ray: tests/scaling
STAND_INS = {
    "mtri-admin/ZipRerank": "nano",
    "vidore/colqwen2-v1.0": "nano",
    'url="http://localhost:6333"': 'client=QdrantClient(":memory:")',
}
NOT_FOR_USERS = {"browser", "dev", "docs"}
TWO_LINES = re.compile(r"reranker = .*\nquery_engine = .*\n")


def blocks(page: str) -> list[str]:
    found = re.findall(r"^```python\n(.*?)^```", (ROOT / page).read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    for name, stand_in in STAND_INS.items():
        found = [block.replace(name, stand_in) for block in found]
    return found


@pytest.fixture(autouse=True)
def llm(monkeypatch: pytest.MonkeyPatch) -> None:
    """Stands for the LLM that the reader has configured."""
    monkeypatch.setattr(Settings, "_llm", MockLLM(max_tokens=4))


@pytest.fixture
def index(tmp_path: Path) -> VectorStoreIndex:
    """Stands for the index that the reader has: LlamaIndex's own, over pages."""
    pages = PDFPageReader().load_data(tiny_manual(tmp_path / "manual.pdf"))
    return VectorStoreIndex([document_to_page_node(page) for page in pages], embed_model=MockEmbedding(8))


def test_the_quick_start_names_every_extra() -> None:
    declared = re.findall(r"^Provides-Extra: (\S+)", str(metadata("llama-index-ziprerank")), re.MULTILINE)
    page = (ROOT / "docs" / "guides" / "quick_start.md").read_text(encoding="utf-8")

    assert set(declared) - NOT_FOR_USERS <= set(re.findall(r"^\| `([a-z-]+)` \|", page, re.MULTILINE))


@pytest.mark.parametrize("page", PAGES)
def test_an_engine_that_exists_needs_the_two_lines_that_are_shown(page: str, index: VectorStoreIndex) -> None:
    [block] = [block for block in blocks(page) if TWO_LINES.search(block)]
    names = {"index": index}
    exec(block, names)
    answer = names["query_engine"].query("How are error bars drawn?")

    assert isinstance(answer, Response)
    assert len(answer.source_nodes) == 5
    scores = [node.score for node in answer.source_nodes]
    assert scores == sorted(scores, reverse=True) and 0 < sum(scores) <= 1


def test_a_pdf_becomes_an_answer_as_shown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    tiny_manual(tmp_path / "manual.pdf")
    [block] = [block for block in blocks("README.md") if "PDFPageReader()" in block]
    exec(block, {"your_multimodal_llm": MockLLM(max_tokens=4, is_chat_model=True)})

    assert capsys.readouterr().out.strip() == "text text text text"
    assert (tmp_path / "manual.index").is_dir()


@pytest.mark.filterwarnings("ignore:Local mode performs exact")  # of Qdrant's memory
@pytest.mark.parametrize("guide", GUIDES)
def test_a_guide_can_be_typed_in_from_top_to_bottom(
    guide: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    tiny_manual(tmp_path / "manual.pdf")
    names = {"your_multimodal_llm": MockLLM(max_tokens=4, is_chat_model=True), "QdrantClient": QdrantClient}
    for block in blocks(f"docs/guides/{guide}"):
        exec(block, names)
    for index in [value for value in names.values() if isinstance(value, ColPaliIndex)]:
        index.close()
