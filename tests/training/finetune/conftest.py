from pathlib import Path

import pytest
from tiny_manual import tiny_manual
from tiny_retriever import colqwen3


@pytest.fixture(scope="session")
def retriever(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return colqwen3(tmp_path_factory.mktemp("retriever") / "tiny")


@pytest.fixture
def manual(tmp_path: Path) -> Path:
    return tiny_manual(tmp_path / "manual.pdf")
