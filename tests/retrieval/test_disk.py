"""What the disk refuses is told in words, and leaves nothing behind; `tests/trust` fills a real one."""

import errno
import os
import shutil
from pathlib import Path

import pytest

from llama_index_ziprerank.retrieval.disk import check_room, disk_errors, write_whole
from llama_index_ziprerank.retrieval.store import StoreError


def test_too_little_room_is_told_before_anything_is_written(tmp_path: Path) -> None:
    check_room(tmp_path / "new" / "index", 1)
    with pytest.raises(StoreError, match=r"MB left, and 1000000000000 MB are wanted before writing.*Make room"):
        check_room(tmp_path / "new" / "index", 10**18)


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS, errno.EBUSY])
def test_a_disk_that_is_full_or_read_only_or_mounted_there_is_an_error_with_advice(tmp_path: Path, number: int) -> None:
    with pytest.raises(StoreError, match=f"cannot be written .{os.strerror(number)}."), disk_errors(tmp_path):
        raise OSError(number, os.strerror(number))


def test_a_copy_that_fails_says_why_and_another_error_stays_what_it_is(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match=r"cannot be written \(no room\)"), disk_errors(tmp_path):
        raise shutil.Error([("a", "b", "first"), ("c", "d", "no room")][1:])
    with pytest.raises(ConnectionError), disk_errors(tmp_path):
        raise ConnectionError(errno.ECONNRESET, "reset")


def test_a_file_that_cannot_take_its_place_leaves_no_half(tmp_path: Path) -> None:
    (tmp_path / "taken").mkdir()
    with pytest.raises(OSError):
        write_whole(tmp_path / "taken", b"content")
    assert [path.name for path in tmp_path.iterdir()] == ["taken"]
