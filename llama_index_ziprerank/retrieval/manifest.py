"""``index.json``: what an index was built with, and in which format it is written."""

import json
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from llama_index_ziprerank.retrieval.disk import write_whole

FORMAT = 2
"""2: a page knows every file that holds it (``copies``). Format 1 knew one; it is read as it is and becomes 2."""
_READABLE = (1, FORMAT)


@dataclass(frozen=True)
class Manifest:
    """What ``index.json`` says."""

    model: str
    """Name or folder of the retriever, as given."""
    family: str
    fingerprint: str
    """See ``MultiVectorEncoder.fingerprint``."""
    pool_factor: int
    has_vectors: bool
    """False: the vectors lie outside of the folder, on a Qdrant server."""
    format: int = FORMAT

    @staticmethod
    def read(path: Path) -> "Manifest":
        """Read the file ``path``; an index of an older format is brought to this one.

        Raises:
            ValueError: when it is damaged, or written by a newer version of this library.
        """
        content = _read_object(path)
        written = content.get("format")
        if isinstance(written, int) and written > FORMAT:
            raise ValueError(
                f"{path.parent} holds an index of format {written}, this version reads {FORMAT} and older. "
                "Update llama-index-ziprerank, or build the index again in another folder."
            )
        if written not in _READABLE or content.keys() != {field.name for field in fields(Manifest)}:
            raise _damaged(path, f"it holds format {written!r} and {sorted(content)}")
        wrong = [field.name for field in fields(Manifest) if type(content[field.name]) is not field.type]
        if wrong:
            raise _damaged(path, f"of another type than written are { {name: content[name] for name in wrong} }")
        manifest = Manifest(**{**content, "format": FORMAT})
        if written != FORMAT:
            manifest.write(path)
        return manifest

    @staticmethod
    def lies_at(path: Path) -> bool:
        """Whether the file ``path`` is that of an index, in whatever format."""
        try:
            return _read_object(path).keys() >= {"format", "fingerprint", "has_vectors"}
        except (OSError, ValueError):
            return False

    def write(self, path: Path) -> None:
        """Write the file ``path``, whole or not at all."""
        write_whole(path, json.dumps(asdict(self), indent=1).encode())

    def check_same_model(self, other: "Manifest", folder: Path) -> None:
        """Check that ``other`` describes the model that built the index.

        Raises:
            ValueError: naming both models.
        """
        if self.fingerprint != other.fingerprint:
            raise ValueError(
                f"The index {folder} was built with {self.model!r} ({self.family}, {self.fingerprint}), and "
                f"{other.model!r} ({other.family}, {other.fingerprint}) is another: their vectors do not mix. "
                "Load the index with the model that built it, or build it again in another folder."
            )

    def check_same_pooling(self, other: "Manifest", folder: Path) -> None:
        """Check that pages added by ``other`` would be pooled as those that are there.

        Raises:
            ValueError: naming both factors.
        """
        if self.pool_factor != other.pool_factor:
            raise ValueError(
                f"The index {folder} was built with pool_factor {self.pool_factor}, got {other.pool_factor}: pooled "
                f"and whole pages do not mix. Pass pool_factor={self.pool_factor}, or use ColPaliIndex.load."
            )

    def check_store(self, *, is_given: bool, folder: Path) -> None:
        """Check that a store is given exactly when the vectors lie outside of the folder.

        Raises:
            ValueError: saying where the vectors are.
        """
        if is_given and self.has_vectors:
            raise ValueError(f"The vectors of {folder} are in the folder: leave `store` away.")
        if not is_given and not self.has_vectors:
            raise ValueError(
                f"The vectors of {folder} are not in the folder. Say where: store=QdrantStore(url=..., collection=...) "
                "from llama_index_ziprerank.retrieval.qdrant."
            )


def _read_object(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:  # no JSON, or no UTF-8
        raise _damaged(path, str(error)) from error
    return content if isinstance(content, dict) else {}


def _damaged(path: Path, reason: str) -> ValueError:
    return ValueError(
        f"{path} is damaged: {reason}. Restore it from a copy, or build the index again in another folder."
    )
