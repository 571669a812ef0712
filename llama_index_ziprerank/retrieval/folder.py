"""The folder of an index: ``index.json`` (see ``manifest.py``), ``images/`` (one PNG a page), ``store/`` (the vectors).

Every file is written whole or not at all, and names inside are relative, so the folder can be moved. Two more files
come and go: ``index.lock`` is held while the index is open, ``unfinished`` lies there from the first change to closing.
A process that is killed leaves the second one behind, and the next to open the index clears up.
"""

import hashlib
import os
import re
import shutil
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from filelock import FileLock

from llama_index_ziprerank.retrieval.disk import disk_errors, lock, write_whole
from llama_index_ziprerank.retrieval.manifest import Manifest
from llama_index_ziprerank.retrieval.store import StoreError

_LOCK = "index.lock"
_PART = ".part"


class IndexFolder:
    """Reads and writes the folder ``path``."""

    def __init__(self, path: str | Path) -> None:
        """Name the folder; it need not exist. Links are followed now: a link cannot be replaced as a folder can."""
        self.path = Path(path).resolve()
        self.images = self.path / "images"
        self.store = self.path / "store"
        self._manifest = self.path / "index.json"
        self._unfinished = self.path / "unfinished"
        self._held: FileLock | None = None
        self._workplace = self.path.with_name(f".{self.path.name}.ziprerank")

    @property
    def holds_index(self) -> bool:
        """Whether an index was begun here."""
        return self._manifest.exists()

    @property
    def is_locked(self) -> bool:
        """Whether this object keeps other processes out."""
        return self._held is not None

    @property
    def was_interrupted(self) -> bool:
        """Whether the last process that changed the index did not close it."""
        return self._unfinished.exists()

    @property
    def holds_images(self) -> bool:
        """Whether an image of a page is here."""
        return self.images.is_dir() and any(file.suffix == ".png" for file in self.images.iterdir())

    def check_free(self) -> None:
        """Check that nothing but an index would be written over, and that a new one would not go with another.

        Raises:
            ValueError: when the folder holds other files, or lies inside an index.
        """
        if self.holds_index:
            return
        outer = next((one for one in self.path.parents if Manifest.lies_at(one / self._manifest.name)), None)
        if outer is not None:
            raise ValueError(f"{self.path} lies inside the index {outer}. Choose a folder elsewhere.")
        if not self.path.exists():
            return
        if not self.path.is_dir() or any(not _is_beginning(file) for file in self.path.iterdir()):
            raise ValueError(f"{self.path} holds files that are no index. Choose an empty or a new folder.")

    def check_exists(self) -> None:
        """Check that an index was begun here.

        Raises:
            FileNotFoundError: when it was not.
        """
        if not self.holds_index:
            raise FileNotFoundError(
                f"{self.path} holds no index (no index.json). Build one with ColPaliIndex.from_documents."
            )

    def lock(self) -> None:
        """Keep other processes out until ``release``, or the end of this process; makes the folder.

        Raises:
            StoreError: when the index is open elsewhere, or the folder cannot be written.
        """
        with disk_errors(self.path):
            self.path.mkdir(parents=True, exist_ok=True)
        self._held = lock(self.path / _LOCK, self.path)

    def release(self) -> None:
        """Let other processes in; releasing twice is fine."""
        if self._held is not None:
            self._held.release()
        self._held = None

    def create(self, manifest: Manifest) -> None:
        """Begin an index; the manifest comes first, so that an interrupted build is known for what it is."""
        with disk_errors(self.path):
            self.path.mkdir(parents=True, exist_ok=True)
            manifest.write(self._manifest)
            self._make_folders(manifest)

    def manifest(self) -> Manifest:
        """Read ``index.json``; an index of an older format becomes one of this format.

        Raises:
            FileNotFoundError: when there is none.
            ValueError: when it is damaged, or a newer version of this library wrote it.
        """
        self.check_exists()
        with disk_errors(self.path):
            manifest = Manifest.read(self._manifest)
            self._make_folders(manifest)
        return manifest

    def _make_folders(self, manifest: Manifest) -> None:
        """Make those that a process was killed before; ``store/`` comes first, so that alone it is never missing."""
        if manifest.has_vectors and not self.images.exists():
            self.store.mkdir(exist_ok=True)
        self.images.mkdir(exist_ok=True)

    def begin_changes(self) -> None:
        """Note that changes are under way."""
        with disk_errors(self.path):
            self._unfinished.touch()

    def end_changes(self) -> None:
        """Note that every image belongs to a page again."""
        self._unfinished.unlink(missing_ok=True)

    def write_image(self, page_id: str, digest: str, png: bytes) -> str:
        """Store a page's image; return its file name.

        Ids come from users: one that is plain hexadecimal becomes the name, of any other a hash does. The digest keeps
        the old and the new image of a page apart until the new record is stored.
        """
        plain = re.fullmatch(r"[0-9a-f][0-9a-f-]{0,63}", page_id)
        name = page_id if plain else "id-" + hashlib.sha256(page_id.encode(errors="surrogatepass")).hexdigest()[:32]
        file_name = f"{name}.{digest[:8]}.png"
        with disk_errors(self.path):
            write_whole(self.images / file_name, png)
        return file_name

    def has_image(self, file_name: str | None) -> bool:
        """Whether a page's image is here; None (a page without one) lacks nothing."""
        return file_name is None or (self.images / checked_image_name(file_name)).is_file()

    def remove_images(self, file_names: Iterable[str]) -> None:
        """Remove images; missing files are fine."""
        for name in file_names:
            (self.images / checked_image_name(name)).unlink(missing_ok=True)

    def sweep(self, kept: set[str | None]) -> None:
        """Remove what a killed process left: images other than ``kept``, and halves of files.

        Folders stay: file managers and servers put their own (``@eaDir``) beside images.
        """
        for file in (*self.images.iterdir(), *self.path.glob(f"*{_PART}")):
            if file.name not in kept and not file.is_dir():
                file.unlink()

    def copy_images_to(self, other: "IndexFolder") -> None:
        """Copy all page images."""
        with disk_errors(other.path):
            shutil.copytree(self.images, other.images, dirs_exist_ok=True)

    @contextmanager
    def replacement(self) -> Iterator["IndexFolder"]:
        """Give a new folder to fill; afterwards it takes this one's place, and what was here is gone.

        Whatever stops it, this folder holds the old index or the whole new one (after ``finish_replacing``).

        Raises:
            StoreError: when the index here is open, or another process is replacing it.
        """
        with self._in_workplace() as workplace, ExitStack() as locked:
            if self.holds_index:
                self.lock()
                locked.callback(self.release)
            new = IndexFolder(workplace / "new")
            yield new
            old = workplace / "old"
            with disk_errors(self.path):
                if self.path.exists():
                    self.path.rename(old)
                try:
                    new.path.rename(self.path)
                except BaseException:
                    if old.exists():
                        old.rename(self.path)
                    raise

    def finish_replacing(self) -> None:
        """Put the new index in place, when a process was killed just before that; else do nothing."""
        if os.path.exists(self._workplace / "old"):  # false for a name so long that there can be none
            with self._in_workplace():
                pass

    @contextmanager
    def _in_workplace(self) -> Iterator[Path]:
        """Take the folder beside this one where a replacement is made, first finishing an interrupted one."""
        with disk_errors(self.path):
            self._workplace.mkdir(parents=True, exist_ok=True)
        held = lock(self._workplace / _LOCK, self.path)
        new, old = self._workplace / "new", self._workplace / "old"
        try:
            if old.exists() and not self.path.exists():
                new.rename(self.path)
            _remove(new, old)
            yield self._workplace
        finally:
            _remove(new, old)
            with suppress(OSError):  # another process may be about to take the place
                (self._workplace / _LOCK).unlink()
                self._workplace.rmdir()
            held.release()


def checked_image_name(name: str) -> str:
    """Return the name of a page's image if ``write_image`` may have given it: no path, and nothing hidden.

    Raises:
        StoreError: for any other; such a record did not come from this library.
    """
    if not re.fullmatch(r"[0-9a-z][0-9a-z.-]*\.png", name):
        raise StoreError(
            f"A page's image is said to be {name[:200]!r}, which is no file of an index. "
            "The store was not written by this library; do not use it."
        )
    return name


def _remove(*folders: Path) -> None:
    for folder in folders:
        if folder.exists():
            shutil.rmtree(folder)


def _is_beginning(file: Path) -> bool:
    """Whether a process that was killed before it wrote ``index.json`` may have left this file."""
    return file.name == _LOCK or (file.name.startswith("index.json.") and file.name.endswith(_PART))
