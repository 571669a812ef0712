import gzip
import os
from pathlib import Path

import pytest

from llama_index_ziprerank.debian import FetchError, fetch_file


@pytest.fixture
def no_programs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path / "nowhere"))


def _unpacked(folder: Path, name: str, content: bytes) -> None:
    path = folder / "some-doc" / "usr" / "share" / name
    path.parent.mkdir(parents=True)
    path.write_bytes(content)


def test_what_was_fetched_is_not_fetched_again(no_programs: None, tmp_path: Path) -> None:
    _unpacked(tmp_path, "manual.pdf", b"%PDF")

    path = fetch_file("some-doc", "manual.pdf", tmp_path)

    assert path.read_bytes() == b"%PDF"
    assert fetch_file("some-doc", "manual.pdf", tmp_path) == path


def test_a_file_that_debian_zipped_is_unzipped(no_programs: None, tmp_path: Path) -> None:
    _unpacked(tmp_path, "manual.pdf.gz", gzip.compress(b"%PDF"))

    assert fetch_file("some-doc", "manual.pdf", tmp_path).read_bytes() == b"%PDF"


def test_a_copy_that_was_cut_off_is_not_taken_for_the_file(
    no_programs: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _unpacked(tmp_path, "manual.pdf", b"%PDF")

    def write_half(path: Path, content: bytes) -> int:
        with path.open("wb") as file:
            file.write(content[:2])
        raise OSError("No space left on device")

    with monkeypatch.context() as full_disk, pytest.raises(OSError, match="No space"):
        full_disk.setattr(Path, "write_bytes", write_half)
        fetch_file("some-doc", "manual.pdf", tmp_path)

    assert fetch_file("some-doc", "manual.pdf", tmp_path).read_bytes() == b"%PDF"


def test_a_package_that_cannot_be_unpacked_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    programs = {"apt-get": "touch some-doc_1.deb", "dpkg": "echo broken >&2; exit 2"}
    for name, program in programs.items():
        (tmp_path / name).write_text(f"#!/bin/sh\n{program}\n")
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)

    with pytest.raises(FetchError, match="some-doc_1.deb cannot be unpacked: broken. Remove it"):
        fetch_file("some-doc", "manual.pdf", tmp_path / "work")


def test_a_package_without_the_file_is_named(no_programs: None, tmp_path: Path) -> None:
    _unpacked(tmp_path, "other.pdf", b"%PDF")

    with pytest.raises(FetchError, match="some-doc has no file manual.pdf"):
        fetch_file("some-doc", "manual.pdf", tmp_path)


def test_without_apt_the_error_says_what_is_needed(no_programs: None, tmp_path: Path) -> None:
    with pytest.raises(FetchError, match="needs apt-get and dpkg"):
        fetch_file("some-doc", "manual.pdf", tmp_path)
