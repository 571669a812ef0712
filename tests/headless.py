"""A real browser without a window, for the tests of what browsers do; a test that needs it is skipped without one."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

_PROGRAMS = ("chromium", "chromium-browser", "google-chrome")
_CURE = "bash scripts/set_up.sh browser"


@contextmanager
def chromium() -> Iterator[Any]:
    """Start the Chromium of this machine, driven by playwright (which downloads nothing)."""
    playwright = pytest.importorskip("playwright.sync_api", reason=f"playwright is not installed: {_CURE}")
    program = next(filter(None, map(shutil.which, _PROGRAMS)), None)
    if program is None:
        pytest.skip(f"no browser ({', '.join(_PROGRAMS)}): {_CURE}, or apt-get install chromium")
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=program, args=["--no-sandbox"])
        yield browser
        browser.close()
