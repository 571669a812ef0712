"""The small PDF that tests of reading begin with."""

from pathlib import Path

import pytest
from three_pages import write


@pytest.fixture
def manual(tmp_path: Path) -> Path:
    return write(tmp_path / "manual.pdf")
