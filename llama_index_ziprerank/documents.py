"""What an index is given, documents or nodes, becomes page nodes; what cannot be stored is refused by its name."""

from collections.abc import Iterable, Iterator
from pathlib import PurePath
from typing import Any

from llama_index.core.bridge.pydantic import TypeAdapter
from llama_index.core.schema import BaseNode, Document, IndexNode, Node, TextNode

from llama_index_ziprerank.nodes import document_to_page_node, writable

_ADVICE = (
    "Read a PDF by PDFPageReader().load_data(path), put a single document into a list, and pass nodes to insert_nodes."
)
_ANYTHING: TypeAdapter[Any] = TypeAdapter(Any)


def page_nodes(documents: Iterable[Document]) -> Iterator[TextNode]:
    """Yield the page of each document, as they are asked for; what is no list of documents is refused now."""
    if isinstance(documents, str | bytes | PurePath | BaseNode):
        raise TypeError(f"Documents are wanted, a list or a generator, got {_said(documents)}. {_ADVICE}")
    return map(_document_page, documents)


def _document_page(document: Document) -> TextNode:
    if not isinstance(document, Document):
        raise TypeError(f"A document is wanted, got {_said(document)}. {_ADVICE}")
    return as_page_node(document)


def as_page_node(node: BaseNode) -> TextNode:
    """Return the node of one page; an ImageNode or a TextNode is that already.

    Raises:
        TypeError: for anything that is no node with text and image.
        ValueError: for text that is no Unicode, and for metadata that JSON cannot hold.
    """
    if not isinstance(node, TextNode | Node):
        raise TypeError(f"A node that holds a page is wanted (ImageNode, TextNode, Node), got {_said(node)}. {_ADVICE}")
    if isinstance(node, IndexNode):
        raise TypeError(
            f"A node that holds a page is wanted, got {_said(node)}: what an IndexNode refers to cannot be stored. "
            "Pass a TextNode or an ImageNode in its place."
        )
    if isinstance(node, TextNode):
        page = writable(node)
    else:
        page = document_to_page_node(node)
        if not isinstance(node, Document):  # its document is the one that it names
            page.relationships = dict(node.relationships)
    _check_metadata(page)
    return page


def _check_metadata(node: BaseNode) -> None:
    for key, value in node.metadata.items():
        try:
            _ANYTHING.dump_json(value)
        except ValueError as error:  # pydantic's, as for a whole node
            raise ValueError(
                f"Document {node.node_id!r}: its metadata {key!r} is {_said(value)}, which JSON cannot hold. "
                "Store it as a string, a number, a boolean, or a list of them."
            ) from error


def _said(value: object) -> str:
    """Name a thing in a message, at no great length."""
    shown = repr(value.node_id if isinstance(value, BaseNode) else value)
    return f"the {type(value).__name__} {shown[:200]}"
