"""An index survives what happens to it: kill -9, a full disk, a read-only one, another process, another version."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from llama_index_ziprerank.retrieval.folder import IndexFolder, checked_image_name
from llama_index_ziprerank.retrieval.manifest import FORMAT, Manifest
from llama_index_ziprerank.retrieval.store import StoreError

HERE = Path(__file__).parent
OWN_DISKS = ["unshare", "--map-root-user", "--mount"]
SECONDS = 900


def _run(script: str, *arguments: object, before: list[str] | None = None) -> list[Any]:
    """Run a script of this folder; return what it printed."""
    command = [*(before or []), sys.executable, "-W", "error", str(HERE / script), *map(str, arguments)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=SECONDS, env=environment)
    assert done.returncode == 0, done.stderr[-4000:]
    return [json.loads(line) for line in done.stdout.splitlines()]


def _may_mount(folder: Path) -> bool:
    mount = ["mount", "-t", "tmpfs", "none", str(folder)]
    try:
        return subprocess.run([*OWN_DISKS, *mount], capture_output=True, check=False).returncode == 0
    except FileNotFoundError:
        return False


def test_an_index_survives_three_kills(tmp_path: Path) -> None:
    [interrupted] = _run("kill_rounds.py", tmp_path, 3, 5)
    assert sum(interrupted.values()) >= 3


@pytest.mark.slow
def test_an_index_survives_fifty_kills(tmp_path: Path) -> None:
    [interrupted] = _run("kill_rounds.py", tmp_path, 50, 1)
    print(interrupted)
    assert {"build", "insert", "refresh", "delete", "persist", "warm"} <= interrupted.keys()


@pytest.mark.slow
def test_of_processes_that_race_for_an_index_one_is_served_and_none_does_harm(tmp_path: Path) -> None:
    [outcome] = _run("race_rounds.py", tmp_path, 5, 5)
    assert outcome["served"] >= 10 and outcome["served"] + outcome["refused"] == 50


@pytest.mark.slow
def test_a_full_a_limited_and_a_read_only_disk_are_errors_and_the_index_stays(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    if not _may_mount(disk):
        pytest.skip("no small disk can be mounted here (unshare --map-root-user --mount)")
    limited, full, read_only = _run("disk_rounds.py", disk, before=OWN_DISKS)
    assert (limited, read_only) == ({"limited": 1}, {"read-only": 4})
    assert full["full"]["refused"] and full["full"]["written"]


# What a killed process may leave of a folder, made by hand.


def _manifest() -> Manifest:
    return Manifest("nano", "ColQwen3", "0123", 1, True)


@pytest.mark.parametrize("left", [[], ["index.lock"], ["index.lock", "index.json.0a1b2c3d.part"]])
def test_a_folder_in_which_an_index_was_about_to_begin_is_free(tmp_path: Path, left: list[str]) -> None:
    for name in left:
        (tmp_path / name).touch()
    IndexFolder(tmp_path).check_free()


@pytest.mark.parametrize("left", ["thesis.txt", "thesis.part", "index.json.bak"])
def test_a_folder_with_something_else_in_it_is_not(tmp_path: Path, left: str) -> None:
    (tmp_path / left).touch()
    with pytest.raises(ValueError, match="files that are no index"):
        IndexFolder(tmp_path).check_free()


def test_clearing_up_removes_what_belongs_to_no_page_and_nothing_else(tmp_path: Path) -> None:
    folder = IndexFolder(tmp_path)
    folder.create(_manifest())
    kept, lost = folder.write_image("a", "d" * 64, b"1"), folder.write_image("b", "d" * 64, b"2")
    for half in (tmp_path / "index.json.1.part", folder.images / "c.png.1.part"):
        half.touch()
    folder.sweep({kept})
    assert [path.name for path in folder.images.iterdir()] == [kept] != [lost]
    assert {path.name for path in tmp_path.iterdir()} == {"index.json", "images", "store"}


def test_a_replacement_that_was_killed_between_its_two_steps_is_finished(tmp_path: Path) -> None:
    folder, workplace = IndexFolder(tmp_path / "index"), tmp_path / ".index.ziprerank"
    IndexFolder(workplace / "old").create(_manifest())
    IndexFolder(workplace / "new").create(_manifest())
    (workplace / "new" / "images" / "new.png").touch()
    folder.finish_replacing()
    assert (folder.images / "new.png").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["index"]


def test_a_replacement_that_fails_leaves_the_old_index(tmp_path: Path) -> None:
    folder = IndexFolder(tmp_path / "index")
    folder.create(_manifest())
    folder.write_image("a", "d" * 64, b"1")
    with pytest.raises(KeyboardInterrupt), folder.replacement() as new:
        new.create(_manifest())
        raise KeyboardInterrupt
    with pytest.raises(FileNotFoundError), folder.replacement():
        pass  # nothing was put there, so nothing can take the old one's place
    assert len(list(folder.images.iterdir())) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["index"]


def test_an_index_that_is_open_is_not_replaced(tmp_path: Path) -> None:
    folder, other = IndexFolder(tmp_path / "index"), IndexFolder(tmp_path / "index")
    folder.create(_manifest())
    folder.lock()
    with pytest.raises(StoreError, match="open elsewhere"), other.replacement() as new:
        new.create(_manifest())
    folder.release()
    with other.replacement() as new:
        new.create(_manifest())
    folder.lock()
    folder.release()


# Formats.


def _write(tmp_path: Path, **changes: Any) -> Path:
    path = tmp_path / "index.json"
    _manifest().write(path)
    content = {**json.loads(path.read_text()), **changes}
    path.write_text(json.dumps({key: value for key, value in content.items() if value is not None}))
    return path


def test_an_index_of_the_first_format_becomes_one_of_this(tmp_path: Path) -> None:
    path = _write(tmp_path, format=1)
    assert Manifest.read(path) == _manifest()
    assert json.loads(path.read_text())["format"] == FORMAT


def test_an_index_of_a_newer_format_asks_for_an_update(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=rf"format {FORMAT + 1}, this version reads {FORMAT} and older. Update"):
        Manifest.read(_write(tmp_path, format=FORMAT + 1))


@pytest.mark.parametrize("changes", [{"format": None}, {"format": "2"}, {"format": 0}, {"model": None}, {"more": 1}])
def test_a_damaged_manifest_says_what_to_do(tmp_path: Path, changes: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="is damaged.*Restore"):
        Manifest.read(_write(tmp_path, **changes))


@pytest.mark.parametrize(
    "changes", [{"pool_factor": "x"}, {"model": 5}, {"has_vectors": 1}, {"pool_factor": True}, {"fingerprint": []}]
)
def test_a_manifest_with_a_value_of_another_type_names_it_and_says_what_to_do(
    tmp_path: Path, changes: dict[str, Any]
) -> None:
    with pytest.raises(ValueError, match=f"is damaged.*'{next(iter(changes))}'.*Restore"):
        Manifest.read(_write(tmp_path, **changes))


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff\xfe", b"null", b'{"format": 1'])
def test_a_manifest_that_is_no_json_object_says_what_to_do(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "index.json").write_bytes(content)
    with pytest.raises(ValueError, match="is damaged.*Restore"):
        Manifest.read(tmp_path / "index.json")


# Names.


@pytest.mark.parametrize(
    "name",
    ["../x.png", "/etc/x.png", "a/b.png", "a\\b.png", ".x.png", "", "x", "x.png\n", "x.png/..", "X.png", "a\0.png"],
)
def test_a_stored_image_name_that_is_a_path_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(StoreError, match="no file of an index"):
        checked_image_name(name)
    outside = tmp_path / "x.png"
    outside.touch()
    folder = IndexFolder(tmp_path / "index")
    folder.create(_manifest())
    with pytest.raises(StoreError):
        folder.remove_images([name])
    assert outside.exists()
