"""Laws of the package as a whole: what is shipped, what it needs, and what it never does."""

import ast
import re
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from importlib.metadata import requires
from pathlib import Path

import pytest
from pypdf import PdfReader

import llama_index_ziprerank

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "llama_index_ziprerank"

DISTRIBUTIONS = {
    "PIL": "pillow",
    "backports": "backports-asyncio-runner",
    "colpali_engine": "colpali-engine",
    "ir_measures": "ir-measures",
    "llama_index": "llama-index-core",
    "qdrant_client": "qdrant-client",
    "qdrant_edge": "qdrant-edge-py",
    "tokenizers": "transformers",
    "grpc": "qdrant-client",
    "huggingface_hub": "transformers",
    "starlette": "ray",
    "typing_extensions": "llama-index-core",
    "fsspec": "llama-index-core",
    "httpx": "llama-index-core",
    "httpcore": "llama-index-core",
    "markupsafe": "jinja2",
    "yaml": "pyyaml",
}
"""Where a distribution is named otherwise than what it is imported by, or comes with one that we name."""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "hatchling", "build", "--target", "wheel", "--directory", str(folder)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    return zipfile.ZipFile(next(folder.glob("*.whl")))


def _modules() -> Iterator[Path]:
    return PACKAGE.rglob("*.py")


def _imports(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module


def _required(extra: str = "") -> set[str]:
    """The distributions that the package needs, without an extra or for one."""
    marker = f'; extra == "{extra}"' if extra else ""
    listed = [entry.replace("'", '"') for entry in requires("llama-index-ziprerank") or []]
    wanted = [entry for entry in listed if (entry.endswith(marker) if extra else "extra ==" not in entry)]
    return {re.split(r"[^A-Za-z0-9-]", entry)[0] for entry in wanted}


def test_the_wheel_holds_every_file_of_the_package(wheel: zipfile.ZipFile) -> None:
    files = {
        str(path.relative_to(ROOT)) for path in PACKAGE.rglob("*") if path.is_file() and "__pycache__" not in path.parts
    }

    assert files <= set(wheel.namelist())
    assert "llama_index_ziprerank/py.typed" in files


def test_the_wheel_holds_nothing_but_the_package_and_its_metadata(wheel: zipfile.ZipFile) -> None:
    rooms = {name.split("/")[0].split("-")[0] for name in wheel.namelist()}

    assert rooms == {"llama_index_ziprerank"}


def test_the_source_distribution_leaves_nothing_out_that_a_reader_is_pointed_to() -> None:
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True).stdout.split()
    if not tracked:
        pytest.skip("not a clone")
    rooms = {name.split("/")[0] for name in tracked if not name.startswith(".")} - {"pyproject.toml"}
    [line] = re.findall(r"targets\.sdist\]\ninclude = (.*)", (ROOT / "pyproject.toml").read_text())

    assert {f"/{room}" for room in rooms} == set(ast.literal_eval(line))


def test_a_font_comes_with_its_licence() -> None:
    fonts = PACKAGE / "pages" / "fonts"

    assert list(fonts.glob("*.ttf")) and [path for path in fonts.iterdir() if "LICENSE" in path.name.upper()]


OPTIONAL = {"sentence_transformers": "sentence-embeddings", "torchao": "quantization"}
"""Imported inside a function, with an error that names the extra."""


@pytest.mark.parametrize("wing", ["", "app", "evaluation", "training", "scaling"])
def test_what_is_imported_is_declared(wing: str) -> None:
    wings = {"app", "evaluation", "training", "scaling"}
    allowed = _required() | (_required(wing) if wing else set())
    for path in _modules():
        room = path.relative_to(PACKAGE).parts[0]
        if (room if room in wings else "") != wing:
            continue
        for name in _imports(path):
            top = name.split(".")[0]
            if top in OPTIONAL:
                assert top.replace("_", "-") in _required(OPTIONAL[top]), f"{path.relative_to(ROOT)} imports {name}"
            elif top not in sys.stdlib_module_names and top != PACKAGE.name:
                assert DISTRIBUTIONS.get(top, top) in allowed, f"{path.relative_to(ROOT)} imports {name}"


def test_nothing_unpickles_or_runs_code_of_a_checkpoint() -> None:
    for path in _modules():
        assert not {"pickle", "joblib", "dill"} & {name.split(".")[0] for name in _imports(path)}, path
        source = path.read_text()
        assert "trust_remote_code=True" not in source, path
        assert source.count("torch.load(") == source.count("weights_only=True"), path


def test_the_front_door_offers_what_it_names() -> None:
    for name in llama_index_ziprerank.__all__:
        assert getattr(llama_index_ziprerank, name), name
    with pytest.raises(AttributeError, match="Nothing"):
        llama_index_ziprerank.Nothing  # noqa: B018


def test_the_changelog_tells_of_the_version() -> None:
    assert f"## [{llama_index_ziprerank.__version__}]" in (ROOT / "CHANGELOG.md").read_text()


def test_the_demo_has_a_real_manual_with_bookmarks_and_printed_page_numbers() -> None:
    [path] = (ROOT / "demo").glob("*.pdf")
    manual = PdfReader(path)

    assert 20 <= len(manual.pages) <= 60
    assert manual.outline and manual.page_labels[0] == "23"
    assert path.name in (ROOT / "Makefile").read_text()
    assert "BSD-2-Clause" in (ROOT / "demo" / "README.md").read_text()


def test_no_two_test_files_share_a_name() -> None:
    names = [path.name for path in Path(__file__).parent.rglob("test_*.py")]
    assert len(names) == len(set(names))  # pytest imports them by their names alone
