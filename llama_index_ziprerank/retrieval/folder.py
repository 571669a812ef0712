"""The folder of an index: ``index.json`` (format and model), ``images/`` (one PNG a page), ``store/`` (the vectors).

Every file is written whole or not at all, and names inside are relative, so the folder can be moved.
"""

import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

_FORMAT = 1


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
    format: int = _FORMAT

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


class IndexFolder:
    """Reads and writes the folder ``path``."""

    def __init__(self, path: str | Path) -> None:
        """Name the folder; it need not exist."""
        self.path = Path(path).absolute()
        self.images = self.path / "images"
        self.store = self.path / "store"
        self._manifest = self.path / "index.json"

    @property
    def holds_index(self) -> bool:
        """Whether an index was begun here."""
        return self._manifest.exists()

    def check_free(self) -> None:
        """Check that nothing but an index would be written over.

        Raises:
            ValueError: when the folder holds other files.
        """
        if not self.holds_index and self.path.exists() and any(self.path.iterdir()):
            raise ValueError(f"{self.path} holds files that are no index. Choose an empty or a new folder.")

    def create(self, manifest: Manifest) -> None:
        """Begin an index; the manifest comes first, so that an interrupted build is known for what it is."""
        self.images.mkdir(parents=True, exist_ok=True)
        _write_whole(self._manifest, json.dumps(asdict(manifest), indent=1).encode())

    def manifest(self) -> Manifest:
        """Read ``index.json``.

        Raises:
            FileNotFoundError: when there is none.
            ValueError: when another version of this library wrote it.
        """
        if not self.holds_index:
            raise FileNotFoundError(
                f"{self.path} holds no index (no index.json). Build one with ColPaliIndex.from_documents."
            )
        content = json.loads(self._manifest.read_text())
        if content.get("format") != _FORMAT:
            raise ValueError(
                f"{self.path} holds an index of format {content.get('format')}, this version reads {_FORMAT}. "
                "Build it again in another folder."
            )
        return Manifest(**content)

    def write_image(self, page_id: str, digest: str, png: bytes) -> str:
        """Store a page's image; return its file name.

        Ids come from users: one that is plain hexadecimal becomes the name, of any other a hash does. The digest keeps
        the old and the new image of a page apart until the new record is stored.
        """
        plain = re.fullmatch(r"[0-9a-f][0-9a-f-]{0,63}", page_id)
        name = page_id if plain else "id-" + hashlib.sha256(page_id.encode(errors="surrogatepass")).hexdigest()[:32]
        file_name = f"{name}.{digest[:8]}.png"
        _write_whole(self.images / file_name, png)
        return file_name

    def remove_images(self, file_names: Iterable[str | None]) -> None:
        """Remove images; None (a page without one) and missing files are fine."""
        for name in file_names:
            if name is not None:
                (self.images / name).unlink(missing_ok=True)

    def replace(self, new: "IndexFolder", old: Path) -> None:
        """Put ``new`` in this folder's place, moving what was there to ``old``; all on one file system."""
        if self.path.exists():
            self.path.rename(old)
        new.path.rename(self.path)

    def copy_images_to(self, other: "IndexFolder") -> None:
        """Copy all page images."""
        shutil.copytree(self.images, other.images, dirs_exist_ok=True)


def _write_whole(path: Path, content: bytes) -> None:
    part = path.with_name(path.name + ".part")
    part.write_bytes(content)
    os.replace(part, path)
