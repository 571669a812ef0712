import socket
import subprocess
import sys
from pathlib import Path

import pytest
from tiny_retriever import PARITY, colqwen3

pytest.importorskip("gradio", reason="gradio is not installed: pip install 'llama-index-ziprerank[app]'")


def test_a_port_that_is_taken_is_one_line_that_names_the_option(tmp_path: Path) -> None:
    program = "import sys; from llama_index_ziprerank.cli import main; main(['app', *sys.argv[1:]])"
    models = ("--model", str(PARITY), "--retriever", str(colqwen3(tmp_path)))
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        done = subprocess.run([sys.executable, "-c", program, *models, "--port", port], capture_output=True, text=True)

    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == f"ziprerank: Port {port} is taken. Pass another one with --port.\n"
