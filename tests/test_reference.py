"""The API reference shows what a reader needs to call: defaults as values, arguments one by one, and constructors."""

import re
from pathlib import Path

import pytest

griffe = pytest.importorskip("griffe")
ROOT = Path(__file__).parent.parent
OURS = "llama_index_ziprerank"
SHOWN = re.findall(
    r"^::: llama_index_ziprerank\.(\S+)((?:\n    .*)*)",
    (ROOT / "docs" / "api.md").read_text(encoding="utf-8"),
    re.MULTILINE,
)
"""Path and options of everything in the reference."""


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


def test_a_field_is_shown_by_its_type_alone(package: "griffe.Module") -> None:
    assert str(package["postprocessors.ZipRerankPostprocessor.model"].annotation) == "str"
    assert package["retrieval.encoder.MultiVectorEncoder.dim"].value is None


def test_arguments_that_are_explained_together_are_explained_each(package: "griffe.Module") -> None:
    sections = package["indices.ColPaliIndex.from_documents"].docstring.parse("google")
    [table] = [section.value for section in sections if section.kind.value == "parameters"]
    shown = {row.name: row for row in table}

    assert {"device", "dtype", "pool_factor"} <= set(shown)
    assert shown["pool_factor"].default == "1" and shown["dtype"].description == shown["device"].description


def test_a_class_that_readers_make_themselves_shows_what_it_takes(package: "griffe.Module") -> None:
    assert SHOWN
    for path, options in SHOWN:
        members = package[path].members
        is_loaded_or_built = any(name in members for name in ("from_pretrained", "from_documents"))
        if "__init__" in members and "dataclass" not in package[path].labels and not is_loaded_or_built:
            assert "merge_init_into_class: true" in options, path


def test_no_field_of_what_a_reader_gets_is_left_out(package: "griffe.Module") -> None:
    for path, options in SHOWN:
        if "dataclass" in package[path].labels and "merge_init_into_class: true" not in options:
            fields = package[path].attributes.items()
            assert not [name for name, field in fields if field.docstring is None and name != "bounds"], path


def test_every_recipe_of_a_training_is_shown(package: "griffe.Module") -> None:
    recipes = [package["training.recipes"], package["training.retriever_recipe"]]
    defined = {recipe.canonical_path for room in recipes for recipe in room.classes.values()}

    assert defined <= {f"{OURS}.{path}" for path, _ in SHOWN}
