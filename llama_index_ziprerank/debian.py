"""Fetch files that Debian packages carry: the wings train and measure on real manuals that need no account.

Nothing is installed: a package is downloaded with apt-get and unpacked into a folder, once.
"""

import gzip
import shutil
import subprocess
from pathlib import Path


class FetchError(RuntimeError):
    """A package or a file in it cannot be had; the message names it and says what to do."""


def fetch_package(package: str, folder: Path) -> Path:
    """Return the folder in which the files of `package` lie, below `folder`; fetch it when it is not there yet.

    Raises:
        FetchError: apt-get or dpkg is missing, or does not know or cannot load or unpack the package.
    """
    target = folder / package
    if target.is_dir():
        return target
    if not shutil.which("apt-get") or not shutil.which("dpkg"):
        raise FetchError(
            f"Fetching {package} needs apt-get and dpkg, that is, Debian or Ubuntu. Name PDF files instead."
        )
    downloads = folder / "downloads"
    downloads.mkdir(parents=True, exist_ok=True)
    loaded = subprocess.run(["apt-get", "download", package], cwd=downloads, capture_output=True, text=True)
    archives = sorted(downloads.glob(f"{package}_*.deb"))
    if loaded.returncode or not archives:
        reasons = [line.removeprefix("E: ") for line in loaded.stderr.splitlines() if line.startswith("E: ")]
        raise FetchError(
            f"apt-get cannot download {package}: {' '.join(reasons) or 'no reason given'}. "
            "Run `apt-get update` as root and try again; Debian 12 has all packages."
        )
    partial = folder / f"{package}.partial"
    unpacked = subprocess.run(["dpkg", "-x", str(archives[-1]), str(partial)], capture_output=True, text=True)
    if unpacked.returncode:
        raise FetchError(f"{archives[-1]} cannot be unpacked: {unpacked.stderr.strip()}. Remove it and try again.")
    partial.rename(target)
    return target


def fetch_file(package: str, name: str, folder: Path) -> Path:
    """Return the path of the file `name` of a package, unzipped where Debian keeps it as `name`.gz.

    Raises:
        FetchError: as `fetch_package`, and when the package has no such file.
    """
    copy = folder / f"{package}{Path(name).suffix}"
    if copy.exists():
        return copy
    root = fetch_package(package, folder)
    for path in sorted(root.rglob("*")):
        if path.is_file() and path.name in {name, f"{name}.gz"}:
            content = path.read_bytes()
            unfinished = copy.with_suffix(".partial")
            unfinished.write_bytes(gzip.decompress(content) if path.suffix == ".gz" else content)
            unfinished.replace(copy)
            return copy
    raise FetchError(
        f"The package {package} has no file {name}. Look into {root}: another release may name it otherwise."
    )
