"""Closed by default: no network, no pickle, no foreign code, no secret in what is shown or stored."""

import ast
import json
import logging
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
from llama_index.core.base.llms.types import ChatMessage
from pypdf import PdfWriter
from qdrant_client.http.exceptions import ApiException
from tiny_manual import tiny_manual

from llama_index_ziprerank.pages.page import PasswordError
from llama_index_ziprerank.readers import PDFPageReader
from llama_index_ziprerank.retrieval.qdrant import QdrantStore
from llama_index_ziprerank.retrieval.store import StoreError
from llama_index_ziprerank.teachers import LLMTeacher, openai_compatible_llm

PACKAGE = Path(__file__).parents[2] / "llama_index_ziprerank"
SECRET = "sk-3141592653589793"


def test_nothing_is_unpickled_and_nothing_asked_of_the_network_unless_a_name_on_it_is_given(tmp_path: Path) -> None:
    pdf = tiny_manual(tmp_path / "manual.pdf")
    script = Path(__file__).with_name("offline_round.py")
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "TRANSFORMERS_VERBOSITY": "error"}
    done = subprocess.run(
        [sys.executable, str(script), str(pdf), str(tmp_path)],
        env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-4000:]
    report = json.loads(done.stdout.splitlines()[-1])
    assert report["found"] == 2
    assert report["asked"] == []
    assert any("huggingface.co" in attempt for attempt in report["asked when a name is given"])
    assert report["unpickled"] == [] and report["seen"] == ["pathlib.Path"]


# The source.


def _calls(tree: ast.AST) -> Iterator[tuple[str, dict[str, Any]]]:
    """Dotted name and constant keywords of every call."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            keywords = {k.arg: k.value.value for k in node.keywords if k.arg and isinstance(k.value, ast.Constant)}
            yield ast.unparse(node.func), keywords


def _sources() -> list[Any]:
    return [pytest.param(path, id=str(path.relative_to(PACKAGE))) for path in sorted(PACKAGE.rglob("*.py"))]


def is_dangerous(name: str, keywords: dict[str, Any]) -> bool:
    """Whether a call may run what lies in a file, a checkpoint or a string."""
    last = name.rpartition(".")[2]
    return (
        name.split(".")[0] in {"pickle", "cPickle", "_pickle", "dill", "joblib", "cloudpickle", "shelve", "marshal"}
        or name in {"eval", "exec", "os.system", "os.popen", "compile", "__import__", "pandas.read_pickle"}
        or (name in {"torch.load", "torch.hub.load"} and keywords.get("weights_only") is not True)
        or keywords.get("allow_pickle") is True
        or keywords.get("trust_remote_code") is True
        or keywords.get("shell") is True
        or (name in {"yaml.load", "yaml.unsafe_load", "yaml.full_load"})
        or keywords.get("verify") is False
        or last == "extractall"
    )  # fmt: skip


@pytest.mark.parametrize("path", _sources())
def test_no_file_unpickles_or_runs_what_it_reads(path: Path) -> None:
    tree = ast.parse(path.read_text())
    assert not [call for call in _calls(tree) if is_dangerous(*call)]
    imported = {alias.name.split(".")[0] for n in ast.walk(tree) if isinstance(n, ast.Import) for alias in n.names}
    imported |= {(n.module or "").split(".")[0] for n in ast.walk(tree) if isinstance(n, ast.ImportFrom)}
    assert not imported & {"pickle", "dill", "joblib", "cloudpickle", "shelve", "marshal", "telnetlib", "ftplib"}


@pytest.mark.parametrize(
    "source",
    [
        "pickle.load(f)", "torch.load(p)", "torch.load(p, weights_only=False)", "f(allow_pickle=True)",
        "m.from_pretrained(p, trust_remote_code=True)", "run(c, shell=True)", "eval(s)", "yaml.load(s)",
        "archive.extractall(d)",
    ],
)  # fmt: skip
def test_the_search_would_find_it(source: str) -> None:
    assert [call for call in _calls(ast.parse(source)) if is_dangerous(*call)]


@pytest.mark.parametrize("path", [one for one in _sources() if not one.id.startswith("training/nano")])
def test_models_are_loaded_from_safetensors_alone(path: Path) -> None:
    """Tokenizers, processors and configurations are JSON; every call that loads weights says so.

    `training/nano` reads only what it has written a moment before.
    """
    for name, keywords in _calls(ast.parse(path.read_text())):
        loads = name.rpartition(".")[2] == "from_pretrained" and "model" in name.lower().rpartition(".")[0].split(".")
        named = "ForConditionalGeneration" in name or loads
        if named and name.endswith("from_pretrained"):
            assert keywords.get("use_safetensors") is True, f"{path}: {name}"


# Secrets.


class _Refusing(BaseHTTPRequestHandler):
    """Answers everything with 401."""

    seen: list[str | None]

    def do_POST(self) -> None:
        self.seen.append(self.headers.get("Authorization") or self.headers.get("api-key"))
        self.rfile.read(int(self.headers.get("Content-Length") or 0))
        body = b'{"error": {"message": "Unauthorized"}}'
        self.send_response(401)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    do_GET = do_PUT = do_POST

    def log_message(self, *arguments: object) -> None:
        pass


@pytest.fixture
def refusing() -> Iterator[tuple[int, list[str | None]]]:
    """The port of a server that refuses, and the keys that it was shown."""
    seen: list[str | None] = []
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Refusing,), {"seen": seen}))
    thread = Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    yield server.server_port, seen
    server.shutdown()
    thread.join()
    server.server_close()


async def test_the_key_of_a_teacher_is_sent_and_nowhere_shown(
    refusing: tuple[int, list[str | None]], caplog: pytest.LogCaptureFixture
) -> None:
    port, seen = refusing
    caplog.set_level(logging.DEBUG)
    async with openai_compatible_llm("m", api_base=f"http://127.0.0.1:{port}/v1", api_key=SECRET) as llm:
        with pytest.raises(Exception, match="Unauthorized") as caught:
            await llm.achat([ChatMessage("hello")])
        shown = [repr(llm), str(llm), llm.to_json(), str(llm.to_dict()), repr(LLMTeacher(llm)), repr(caught.value)]
    assert seen == [f"Bearer {SECRET}"]
    assert not any(SECRET in text for text in (*shown, caplog.text))


@pytest.mark.filterwarnings("ignore:Api key is used with an insecure connection:UserWarning")
def test_the_credentials_of_a_server_are_nowhere_shown(
    refusing: tuple[int, list[str | None]], caplog: pytest.LogCaptureFixture
) -> None:
    port, seen = refusing
    caplog.set_level(logging.DEBUG)
    uses: list[Callable[[], object]] = [
        lambda: QdrantStore(f"http://127.0.0.1:{port}", api_key=SECRET),
        lambda: QdrantStore("http://127.0.0.1:1", api_key=SECRET),
    ]
    for use in uses:
        with pytest.raises(StoreError, match=r"collection 'ziprerank' at http://127.0.0.1:\d+ failed") as caught:
            use()
        assert isinstance(caught.value.__cause__, ApiException)
        assert SECRET not in f"{caught.value}{caught.value!r}{caught.value.__cause__}"
    with pytest.raises(ValueError, match="no user and password") as refused:
        QdrantStore(f"http://user:{SECRET}@127.0.0.1:{port}")
    assert SECRET not in str(refused.value)
    assert SECRET in seen
    assert SECRET not in caplog.text


def test_the_password_of_a_pdf_is_nowhere_shown(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    writer = PdfWriter()
    writer.add_blank_page(150, 200)
    writer.encrypt(SECRET, algorithm="RC4-128")
    writer.write(tmp_path / "locked.pdf")
    reader, wrong = PDFPageReader(password=SECRET, dpi=30), PDFPageReader(password=f"{SECRET}-wrong")
    [document] = reader.load_data(tmp_path / "locked.pdf")
    with pytest.raises(PasswordError) as caught:
        wrong.load_data(tmp_path / "locked.pdf")
    shown = [repr(reader), str(reader), reader.to_json(), str(reader.to_dict()), document.to_json(), repr(document)]
    assert not any(SECRET in text for text in (*shown, str(caught.value), repr(caught.value), caplog.text))
