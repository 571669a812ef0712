"""Pages and LlamaIndex nodes, one to one: the only place that knows our metadata keys and where a node keeps its image.

A page becomes one ImageDocument and one ImageNode, never several: LlamaIndex's own splitter would cut a long page into
pieces that share one picture.
"""

import base64
import binascii
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import unquote_to_bytes

from llama_index.core.base.llms.types import ImageBlock
from llama_index.core.schema import (
    BaseNode,
    Document,
    ImageDocument,
    ImageNode,
    MediaResource,
    MetadataMode,
    Node,
    NodeRelationship,
    NodeWithScore,
    RelatedNodeInfo,
    TextNode,
)
from PIL import Image

from llama_index_ziprerank.pages.images import encode_png, open_image, read_image_file
from llama_index_ziprerank.pages.page import Page, PageError
from llama_index_ziprerank.pages.remote import RemoteImages
from llama_index_ziprerank.pages.text import render_text

FILE_NAME = "file_name"
FILE_PATH = "file_path"
PAGE_LABEL = "page_label"
PAGE_NUMBER = "page_number"

LOGIT = "ziprerank_logit"
WINDOW = "ziprerank_window"
FIRST_STAGE_SCORE = "first_stage_score"
FIRST_STAGE_RANK = "first_stage_rank"
SCORE_KEYS = (LOGIT, WINDOW, FIRST_STAGE_SCORE, FIRST_STAGE_RANK)
"""Written by the postprocessor; kept out of the text that LLMs and embedding models read."""


AnyNode = TypeVar("AnyNode", bound=BaseNode)


class NodeImageError(PageError):
    """A node's image cannot be read; the message names the node."""


def page_to_document(
    page: Page, extra_info: Mapping[str, Any] | None = None, *, image_path: Path | None = None
) -> ImageDocument:
    """Turn a page into an ImageDocument whose id is the page's.

    `extra_info` is added to the metadata; its file name and path win over the page's (a download knows its origin
    better than its temporary file does), the page's label and number are always the page's own.
    The picture is embedded as a base64 PNG, or, when `image_path` names its file, referred to.
    """
    return ImageDocument(
        id_=str(page.id),
        text=page.text,
        image=None if image_path else base64.b64encode(encode_png(page.image)).decode(),
        image_path=str(image_path) if image_path else None,
        image_mimetype="image/png",
        metadata={
            FILE_NAME: page.file_name,
            FILE_PATH: page.file_path,
            **(extra_info or {}),
            PAGE_LABEL: page.label,
            PAGE_NUMBER: page.number,
        },
    )


def writable(node: AnyNode) -> AnyNode:
    """Return the node itself; raise ValueError for text and metadata that neither a hash nor a store can take."""
    try:
        metadata = json.dumps(node.metadata, ensure_ascii=False, default=str)
    except (RecursionError, TypeError, ValueError) as error:
        raise ValueError(f"Document {node.node_id!r}: JSON cannot hold its metadata ({error}).") from error
    try:
        "".join((node.node_id, node_text(node), metadata)).encode()
    except UnicodeEncodeError as error:
        raise ValueError(
            f"Document {node.node_id!r}: its id, text or metadata holds {error.object[error.start : error.end]!r}, "
            "which is no Unicode. A file name that is not UTF-8 gives this: rename the file, or pass extra_info with "
            "another file_path and file_name."
        ) from error
    return node


def document_to_page_node(document: Document | Node) -> TextNode:
    """Turn a document (or a node made like one) into exactly one node with the same id; its `ref_doc_id` is that id.

    The node is an ImageNode, for a document without an image a TextNode: LlamaIndex's own code stumbles over an
    ImageNode without an image.

    Raises:
        NodeImageError: when LlamaIndex has dropped its image.
        ValueError: for text that is no Unicode, and for metadata that JSON cannot hold.
    """
    writable(document)
    source = RelatedNodeInfo(
        node_id=document.id_, node_type=document.get_type(), metadata=dict(document.metadata), hash=document.hash
    )
    fields: dict[str, Any] = {
        "id_": document.id_,
        "text": node_text(document),
        "metadata": dict(document.metadata),
        "excluded_embed_metadata_keys": list(document.excluded_embed_metadata_keys),
        "excluded_llm_metadata_keys": list(document.excluded_llm_metadata_keys),
        "metadata_template": document.metadata_template,
        "metadata_separator": document.metadata_separator,
        "text_template": document.text_template,
        "relationships": {**document.relationships, NodeRelationship.SOURCE: source},
    }
    try:
        image = _image_resource(document)
    except PageError as error:
        raise NodeImageError(f"Image of node {document.node_id!r}: {error}") from error
    if image is None:
        return TextNode(**fields)
    return ImageNode(
        **fields,
        image=image.data.decode() if image.data else None,
        image_path=str(image.path) if image.path else None,
        image_url=str(image.url) if image.url else None,
        image_mimetype=image.mimetype,
    )


def with_scores(node: BaseNode, score: float, values: Mapping[str, Any]) -> NodeWithScore:
    """Return a new scored node that also carries `values` under SCORE_KEYS; `node` itself stays as it is."""
    changes = {"metadata": {**node.metadata, **values}, **also_hidden(node, SCORE_KEYS, SCORE_KEYS)}
    return NodeWithScore(node=node.model_copy(update=changes), score=score)


def also_hidden(node: BaseNode, llm_keys: Iterable[str], embed_keys: Iterable[str]) -> dict[str, list[str]]:
    """Return the fields of `node` that keep metadata from models, with these keys added."""
    return {
        "excluded_llm_metadata_keys": _united(node.excluded_llm_metadata_keys, llm_keys),
        "excluded_embed_metadata_keys": _united(node.excluded_embed_metadata_keys, embed_keys),
    }


def node_text(node: BaseNode) -> str:
    """Return the node's text without its metadata; empty when it has none."""
    return node.get_content(metadata_mode=MetadataMode.NONE)


def node_title(node: BaseNode) -> str:
    """Return what a person calls the page: label, position in the file where that differs, file; or the node's id."""
    file_name = str(node.metadata.get(FILE_NAME, node.node_id))
    label, number = node.metadata.get(PAGE_LABEL), node.metadata.get(PAGE_NUMBER)
    if label is None:
        return file_name
    position = "" if number is None or str(number) == label else f" (PDF {number})"
    return f"page {label}{position} · {file_name}"


def node_image(node: BaseNode, *, remote: RemoteImages | None = None) -> Image.Image | None:
    """Return the node's image as RGB, None for a node without one.

    Reads ImageNode, ImageDocument, Node with `image_resource`, and any other node that offers an image block; from
    base64, a local path or a data URL. Nothing is fetched from the network, unless `remote` says with which limits.

    Raises:
        NodeImageError: the image is missing, damaged, or lies behind a remote URL.
    """
    try:
        source = _image_source(node, remote)
        return None if source is None else open_image(source)
    except ValueError as error:  # PageError, or pydantic's when a node builds its image block
        raise NodeImageError(f"Image of node {node.node_id!r}: {error}") from error


def node_image_file(node: BaseNode, *, remote: RemoteImages | None = None) -> bytes | None:
    """Return the bytes of the node's image file, not decoded; None for a node without one. As `node_image` else.

    Raises:
        NodeImageError: the image is missing, lies behind a remote URL, or its path is no file's; `decode_node_image`
            tells whether it is one.
    """
    try:
        source = _image_source(node, remote)
        return read_image_file(source) if isinstance(source, Path) else source
    except (OSError, ValueError) as error:
        raise NodeImageError(f"Image of node {node.node_id!r}: it cannot be read ({error}).") from error


def decode_node_image(node_id: str, content: bytes) -> Image.Image:
    """Decode what `node_image_file` read.

    Raises:
        NodeImageError: it is damaged, or no image; the message names the node.
    """
    try:
        return open_image(content)
    except PageError as error:
        raise NodeImageError(f"Image of node {node_id!r}: {error}") from error


def page_image_or_rendered_text(
    node: BaseNode, *, text_size: int = 280, remote: RemoteImages | None = None
) -> Image.Image:
    """Return the node's image; for a node without one its text, drawn on a canvas of `text_size` pixels a side.

    `remote`: as `node_image`.

    Raises:
        NodeImageError: as `node_image`, and when the node has neither image nor text.
    """
    image = node_image(node, remote=remote)
    if image is not None:
        return image
    text = node_text(node)
    if not text.strip():
        raise NodeImageError(f"Node {node.node_id!r} has neither an image nor text. Remove it, or give it one of them.")
    return render_text(text, size=text_size)


def _image_source(node: BaseNode, remote: RemoteImages | None) -> bytes | Path | None:
    """Find where the node keeps its image without opening a remote URL, as `get_content_blocks` would."""
    if isinstance(node, ImageNode):
        return _first_source(node.image, node.image_path, node.image_url, remote)
    if isinstance(node, Node):
        resource = _image_resource(node)
        return None if resource is None else _first_source(resource.data, resource.path, resource.url, remote)
    for block in node.get_content_blocks(metadata_mode=MetadataMode.NONE):
        if isinstance(block, ImageBlock):
            if block.image:
                return block.resolve_image().read()
            return _first_source(None, block.path, block.url, remote)
    return None


def _image_resource(node: Node) -> MediaResource | None:
    resource = node.image_resource
    if resource is None or resource.data or resource.path or resource.url:
        return resource
    raise PageError(
        "its image resource is empty. LlamaIndex drops the bytes of an image resource when it persists a node: "
        "keep the image in a file and give its path."
    )


def _first_source(image: Any, path: Any, url: Any, remote: RemoteImages | None) -> bytes | Path | None:
    """Choose among base64 data, path and URL in LlamaIndex's own order."""
    if image:
        text = image if isinstance(image, str) else image.decode("ascii", errors="replace")
        return _from_data_url(text) if _is_data_url(text) else _from_base64(text)
    if path:
        return Path(path)
    if not url:
        return None
    if _is_data_url(str(url)):
        return _from_data_url(str(url))
    if remote is not None:
        return remote.fetch(str(url))
    raise PageError(
        f"{str(url)[:200]} is a remote URL, and remote images are not fetched. Download it and give its path, or pass "
        "allow_remote_images=True."
    )


def _is_data_url(text: str) -> bool:
    return text[:5].lower() == "data:"


def _from_data_url(url: str) -> bytes:
    """Decode ``data:[<type>][;base64],<payload>`` (RFC 2397)."""
    header, comma, payload = url.partition(",")
    if not comma:
        raise PageError(f"{url[:40]!r} is not a data URL: it has no comma. Expected 'data:image/png;base64,...'.")
    content, is_base64 = unquote_to_bytes(payload), header.replace(" ", "").lower().endswith(";base64")
    return _from_base64(content.decode("ascii", errors="replace")) if is_base64 else content


def _from_base64(text: str) -> bytes:
    try:
        return base64.b64decode("".join(text.split()), validate=True)
    except (binascii.Error, ValueError) as error:
        raise PageError(f"its image is not valid base64 ({error}). Expected the bytes of an image file.") from error


def _united(keys: list[str], more: Iterable[str]) -> list[str]:
    return keys + [key for key in more if key not in keys]
