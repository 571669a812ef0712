"""The API reference shows what a reader needs to call: defaults as values, arguments one by one, and constructors."""

import re
from pathlib import Path

import pytest

griffe = pytest.importorskip("griffe")
ROOT = Path(__file__).parent.parent
OURS = "llama_index_ziprerank"


@pytest.fixture(scope="module")
def package() -> "griffe.Module":
    extensions = griffe.load_extensions(str(ROOT / "docs" / "docstrings.py"))
    return griffe.load(OURS, search_paths=[str(ROOT)], extensions=extensions)


def test_a_default_is_shown_as_its_value(package: "griffe.Module") -> None:
    reader, postprocessor = package["readers.PDFPageReader"], package["postprocessors.ZipRerankPostprocessor"]
    kinds = package["evaluation.retrieval_dataset.RetrievalDataset.from_manual"].parameters["kinds"]

    assert (str(reader["dpi"].value), str(reader["max_pages"].value)) == ("150", "2000")
    assert str(postprocessor["cache_memory_bytes"].value) == str(2**30)
    assert str(kinds.default) == "('heading', 'term', 'caption', 'question')"


def test_arguments_that_are_explained_together_are_explained_each(package: "griffe.Module") -> None:
    sections = package["indices.ColPaliIndex.from_documents"].docstring.parse("google")
    [table] = [section.value for section in sections if section.kind.value == "parameters"]
    shown = {row.name: row for row in table}

    assert {"device", "dtype", "pool_factor"} <= set(shown)
    assert shown["pool_factor"].default == "1" and shown["dtype"].description == shown["device"].description


def test_a_class_that_readers_make_themselves_shows_what_it_takes(package: "griffe.Module") -> None:
    reference = (ROOT / "docs" / "api.md").read_text(encoding="utf-8")
    shown = re.findall(r"^::: llama_index_ziprerank\.(\S+)((?:\n    .*)*)", reference, re.MULTILINE)
    assert shown
    for path, options in shown:
        members = package[path].members
        is_loaded_or_built = any(name in members for name in ("from_pretrained", "from_documents"))
        if "__init__" in members and "dataclass" not in package[path].labels and not is_loaded_or_built:
            assert "merge_init_into_class: true" in options, path
