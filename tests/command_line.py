"""`ziprerank` called in this process; `conftest.py` has the fixture."""

from collections.abc import Callable

import pytest

from llama_index_ziprerank.cli import main

Run = Callable[..., tuple[int, str, str]]
"""Runs a command line; returns exit code, stdout and stderr."""


def runner(capsys: pytest.CaptureFixture[str]) -> Run:
    """Run command lines and take what they print."""

    def run(*arguments: object) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as exit:
            main([str(argument) for argument in arguments])
        printed = capsys.readouterr()
        return int(exit.value.code or 0), printed.out, printed.err

    return run
