"""What tells files and checkpoints of one name apart: results stand under names, whose content may change."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from llama_index_ziprerank.checkpoints import resolve_reranker, resolve_retriever

_PARTS = ("*.safetensors", "*.json", "*.jinja", "*.txt")
"""Of a checkpoint's folder: weights, configurations, tokenizer and chat template."""


def file_digest(path: Path) -> str:
    """Return the first 16 hexadecimal digits of the SHA-256 of a file's bytes."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()[:16]


def bytes_digest(content: bytes) -> str:
    """Return the first 16 hexadecimal digits of the SHA-256 of bytes."""
    return hashlib.sha256(content).hexdigest()[:16]


def content_digest(*values: Any) -> str:
    """Return the first 16 hexadecimal digits of the SHA-256 of JSON values."""
    return bytes_digest(json.dumps(values, sort_keys=True).encode())


def checkpoint_digests(*, reranker: str, retriever: str) -> Mapping[str, str]:
    """Name what lies in the folders of both checkpoints, to be kept beside results; what is no folder is left out."""
    folders = {"reranker": Path(resolve_reranker(reranker)), "retriever": Path(resolve_retriever(retriever))}
    return {stage: folder_digest(folder) for stage, folder in folders.items() if folder.is_dir()}


def folder_digest(folder: Path) -> str:
    """Return the first 16 hexadecimal digits of a SHA-256 of what makes the checkpoint in a folder what it is."""
    files = sorted(path for part in _PARTS for path in folder.glob(part))
    told = "".join(f"{path.name} {file_digest(path)}\n" for path in files)
    return bytes_digest(told.encode())
