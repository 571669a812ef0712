"""Shared by all tests: torchvision imports before what needs it, and no event loop is left open."""

import asyncio
from collections.abc import Iterator

import pytest
from command_line import Run, runner

from llama_index_ziprerank import compat

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
