"""The laws of pages as nodes: one to one, nothing lost, and an image found wherever a node may keep it."""

import base64
import json
import os
import pickle
from collections.abc import Callable
from pathlib import Path

import pytest
from llama_index.core.base.llms.types import BaseContentBlock, ImageBlock
from llama_index.core.schema import (
    BaseNode,
    Document,
    ImageDocument,
    ImageNode,
    IndexNode,
    MediaResource,
    MetadataMode,
    Node,
    NodeRelationship,
    RelatedNodeInfo,
    TextNode,
)
from PIL import Image

from llama_index_ziprerank.documents import as_page_node
from llama_index_ziprerank.nodes import (
    FIRST_STAGE_RANK,
    FIRST_STAGE_SCORE,
    LOGIT,
    SCORE_KEYS,
    WINDOW,
    NodeImageError,
    document_to_page_node,
    node_image,
    node_image_file,
    node_text,
    page_image_or_rendered_text,
    page_to_document,
    with_scores,
)
from llama_index_ziprerank.pages.images import encode_png
from llama_index_ziprerank.pages.page import Page, PageId
from llama_index_ziprerank.pages.text import render_text

PICTURE = Image.effect_noise((13, 17), 80).convert("RGB")
PNG = encode_png(PICTURE)
BASE64 = base64.b64encode(PNG).decode()
DATA_URL = f"data:image/png;base64,{BASE64}"


@pytest.fixture
def page() -> Page:
    return Page(PageId("0123456789abcdef", 4), PICTURE, "the text", "iv", 4, "manual.pdf", "/books/manual.pdf")


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "page.png"
    path.write_bytes(PNG)
    return path


def shows_the_picture(node: BaseNode) -> bool:
    image = node_image(node)
    return image is not None and image.mode == "RGB" and image.tobytes() == PICTURE.tobytes()


def test_a_page_becomes_a_document_with_everything_it_carries(page: Page) -> None:
    document = page_to_document(page)
    assert document.doc_id == str(page.id) == "0123456789abcdef-00004"
    assert (document.text, document.image_mimetype) == ("the text", "image/png")
    assert document.metadata == {
        "file_name": "manual.pdf",
        "file_path": "/books/manual.pdf",
        "page_label": "iv",
        "page_number": 4,
    }
    assert shows_the_picture(document)


def test_the_callers_file_names_win_and_the_page_keeps_its_number(page: Page) -> None:
    given = {"file_path": "s3://books/manual.pdf", "page_number": 99, "language": "en"}
    document = page_to_document(page, given)
    assert document.metadata["file_path"] == "s3://books/manual.pdf"
    assert document.metadata["language"] == "en"
    assert document.metadata["page_number"] == 4
    assert given == {"file_path": "s3://books/manual.pdf", "page_number": 99, "language": "en"}


def test_a_picture_in_a_file_is_referred_to_and_not_embedded(page: Page, file: Path) -> None:
    document = page_to_document(page, image_path=file)
    assert (document.image, document.image_path) == (None, str(file))
    assert shows_the_picture(document_to_page_node(document))


def test_a_document_becomes_one_node_that_knows_its_source(page: Page) -> None:
    document = page_to_document(page)
    node = document_to_page_node(document)
    assert isinstance(node, ImageNode)
    assert node.node_id == node.ref_doc_id == document.doc_id
    assert (node.text, node.metadata, node.image_mimetype) == (document.text, document.metadata, "image/png")
    assert shows_the_picture(node)


def test_changing_a_node_leaves_its_document_alone(page: Page) -> None:
    document = page_to_document(page)
    node = document_to_page_node(document)
    node.metadata["new"] = 1
    node.excluded_llm_metadata_keys.append("new")
    assert "new" not in document.metadata
    assert "new" not in document.excluded_llm_metadata_keys
    assert node.source_node is not None and "new" not in node.source_node.metadata


def test_what_the_llm_may_not_see_stays_hidden_and_relations_stay(page: Page) -> None:
    document = page_to_document(page)
    document.excluded_llm_metadata_keys = ["file_path"]
    document.metadata_template = "{key} = {value}"
    document.relationships[NodeRelationship.NEXT] = RelatedNodeInfo(node_id="next")
    node = document_to_page_node(document)
    assert node.get_metadata_str(MetadataMode.LLM) == document.get_metadata_str(MetadataMode.LLM)
    assert node.next_node is not None and node.next_node.node_id == "next"


def test_a_document_without_an_image_becomes_a_text_node() -> None:
    node = document_to_page_node(Document(text="words", id_="d"))
    assert (type(node), node.text, node.ref_doc_id) == (TextNode, "words", "d")


@pytest.mark.parametrize(
    "copy", [lambda n: type(n).from_dict(json.loads(n.to_json())), lambda n: pickle.loads(pickle.dumps(n))]
)
def test_a_page_node_survives_storage(page: Page, copy: Callable[[TextNode], TextNode]) -> None:
    node = document_to_page_node(page_to_document(page))
    stored = copy(node)
    assert stored == node
    assert shows_the_picture(stored)


IMAGE_NODES: dict[str, Callable[[Path], BaseNode]] = {
    "ImageNode, base64": lambda file: ImageNode(image=BASE64),
    "ImageNode, base64 in lines": lambda file: ImageNode(image=base64.encodebytes(PNG).decode()),
    "ImageNode, base64 as data URL": lambda file: ImageNode(image=DATA_URL),
    "ImageNode, path": lambda file: ImageNode(image_path=str(file)),
    "ImageNode, data URL": lambda file: ImageNode(image_url=DATA_URL),
    "ImageDocument, base64": lambda file: ImageDocument(image=BASE64),
    "ImageDocument, path": lambda file: ImageDocument(image_path=str(file)),
    "Node, bytes": lambda file: Node(image_resource=MediaResource(data=PNG)),
    "Node, path": lambda file: Node(image_resource=MediaResource(path=file)),
    "Node, data URL": lambda file: Node(image_resource=MediaResource(url=DATA_URL)),  # type: ignore[arg-type]
    "a class of its own, bytes": lambda file: OwnNode(block=ImageBlock(image=PNG)),
    "a class of its own, path": lambda file: OwnNode(block=ImageBlock(path=file)),
    "a class of its own, data URL": lambda file: OwnNode(block=ImageBlock(url=DATA_URL)),
}


class OwnNode(TextNode):
    """A node that only `get_content_blocks` knows the image of."""

    block: ImageBlock

    def get_content_blocks(self, metadata_mode: MetadataMode = MetadataMode.NONE) -> list[BaseContentBlock]:
        return [*super().get_content_blocks(metadata_mode), self.block]


@pytest.mark.parametrize("kind", list(IMAGE_NODES), ids=str)
def test_an_image_is_found_wherever_a_node_may_keep_it(kind: str, file: Path) -> None:
    assert shows_the_picture(IMAGE_NODES[kind](file))


NO_IMAGE = [
    TextNode(text="a"),
    Document(text="a"),
    Node(),
    ImageNode(text="a"),
    ImageNode(text="a", image="", image_path="", image_url=""),
]


@pytest.mark.parametrize("node", NO_IMAGE, ids=["text", "document", "node", "image node", "empty image node"])
def test_a_node_without_an_image_has_none(node: BaseNode) -> None:
    assert node_image(node) is None


BAD_NODES: dict[str, tuple[BaseNode, str]] = {
    "missing file": (ImageNode(id_="n7", image_path="/nowhere/p.png"), "/nowhere/p.png: .*No such file"),
    "missing file, Node": (Node(id_="n7", image_resource=MediaResource(path=Path("/nowhere/p.png"))), "No such file"),
    "no base64": (ImageNode(id_="n7", image="!!!"), "not valid base64"),
    "no image": (ImageNode(id_="n7", image=base64.b64encode(b"words").decode()), "not an image"),
    "cut image": (ImageNode(id_="n7", image=base64.b64encode(PNG[:300]).decode()), "cannot be read"),
    "half a data URL": (ImageNode(id_="n7", image_url="data:image/png;base64"), "no comma"),
    "remote": (ImageNode(id_="n7", image_url="https://example.org/p.png"), "remote images are not fetched"),
    "remote, Node": (
        Node(id_="n7", image_resource=MediaResource(url="http://example.org/p.png")),  # type: ignore[arg-type]
        "remote images are not fetched",
    ),
    "remote, own class": (OwnNode(id_="n7", block=ImageBlock(url="https://example.org/p.png")), "not fetched"),
    "bytes lost": (Node(id_="n7", image_resource=MediaResource(mimetype="image/png")), "drops the bytes"),
}


@pytest.mark.parametrize("kind", list(BAD_NODES), ids=str)
def test_an_image_that_cannot_be_read_names_its_node(kind: str) -> None:
    node, message = BAD_NODES[kind]
    with pytest.raises(NodeImageError, match=f"(?s)node 'n7'.*{message}"):
        page_image_or_rendered_text(node)


@pytest.mark.parametrize("kind", ["pipe", "device", "folder"])
def test_what_may_never_end_is_not_read_as_an_image_file(kind: str, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "folder").mkdir()
    node = ImageNode(id_="n7", image_path="/dev/zero" if kind == "device" else str(tmp_path / kind))

    for read in (node_image_file, node_image):
        with pytest.raises(NodeImageError, match=r"node 'n7'.*a folder, a pipe or a device"):
            read(node)


def test_a_node_with_an_image_shows_it_and_one_without_shows_its_text() -> None:
    picture = page_image_or_rendered_text(ImageNode(image=BASE64, text="words"))
    words = page_image_or_rendered_text(TextNode(text="words", metadata={"secret": "not drawn"}))
    assert picture.tobytes() == PICTURE.tobytes()
    assert words.tobytes() == render_text("words").tobytes()
    assert page_image_or_rendered_text(TextNode(text="words"), text_size=96).size == (96, 96)


def test_a_node_with_nothing_to_show_is_refused() -> None:
    with pytest.raises(NodeImageError, match="'n7' has neither an image nor text"):
        page_image_or_rendered_text(TextNode(id_="n7", text=" \n"))


def test_text_comes_without_metadata(page: Page) -> None:
    document = page_to_document(page)
    assert node_text(document) == node_text(document_to_page_node(document)) == "the text"


def test_scores_go_to_a_new_node_and_stay_out_of_every_prompt(page: Page) -> None:
    node = document_to_page_node(page_to_document(page))
    before = node.model_copy(deep=True)
    scored = with_scores(node, 0.5, {LOGIT: 3.0, WINDOW: 0, FIRST_STAGE_SCORE: 9.0, FIRST_STAGE_RANK: 1})

    assert node == before
    assert (scored.score, scored.node.metadata[LOGIT]) == (0.5, 3.0)
    for mode in (MetadataMode.LLM, MetadataMode.EMBED):
        assert not any(key in scored.node.get_metadata_str(mode) for key in SCORE_KEYS)
    again = with_scores(scored.node, 0.1, {LOGIT: 1.0})
    assert again.node.excluded_llm_metadata_keys == list(SCORE_KEYS)


@pytest.mark.parametrize("thing", [None, TextNode(text="elsewhere"), object()], ids=["name", "node", "object"])
def test_a_node_that_stands_for_something_else_is_no_page(thing: object) -> None:
    with pytest.raises(TypeError, match=r"got the IndexNode 'n7': what an IndexNode refers to cannot be stored"):
        as_page_node(IndexNode(id_="n7", text="words", index_id="other", obj=thing))


@pytest.mark.parametrize("start", ["DATA:image/png;base64,", "data:image/png;BASE64,", "data:image/png; base64,"])
@pytest.mark.parametrize("field", ["image", "image_url"])
def test_a_data_url_is_read_however_its_words_are_written(start: str, field: str) -> None:
    picture = Image.new("RGB", (4, 3), "red")
    url = start + base64.b64encode(encode_png(picture)).decode()
    assert node_image(ImageNode(**{field: url})) == picture


@pytest.mark.parametrize("nested", [{(1, 2): "a pair"}, {b"bytes": 1}, "itself"])
@pytest.mark.parametrize("kind", [TextNode, ImageDocument])
def test_metadata_that_json_cannot_hold_name_their_document(nested: object, kind: type[BaseNode]) -> None:
    node = kind(id_="n7", metadata={"of the page": nested})
    if nested == "itself":
        node.metadata["of the page"] = node.metadata
    with pytest.raises(ValueError, match="Document 'n7': JSON cannot hold its metadata"):
        as_page_node(node)
