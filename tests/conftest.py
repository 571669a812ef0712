"""Shared by all tests: torchvision imports before what needs it, and no event loop is left open."""

import asyncio
import os
from collections.abc import Iterator

import pytest
from command_line import Run, runner

from llama_index_ziprerank import compat

if workers := int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "0")):  # they share the cores, and so do their programs
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // workers)))

compat.import_torchvision()


@pytest.fixture(autouse=True)
def _event_loop() -> Iterator[None]:
    """LlamaIndex's synchronous calls make an event loop and leave it open, for a later test to stumble on; not ours."""
    loop = asyncio.new_event_loop()
    asyncio.set_event_loop(loop)
    yield
    asyncio.set_event_loop(None)
    loop.close()


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    """Run a command line; return exit code, stdout and stderr."""
    return runner(capsys)
