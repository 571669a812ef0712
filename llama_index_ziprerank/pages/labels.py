"""The names that a PDF gives its pages ("iv", "A-3"), read by pypdf in a process of its own.

pypdf is plain Python: a hostile file can keep it busy for hours or make it fill the memory.
"""

import json
import sys
from pathlib import Path

from llama_index_ziprerank.pages.bounded import MIB, run_bounded
from llama_index_ziprerank.pages.page import encodable
from llama_index_ziprerank.pages.poppler import PdfFile

_PROGRAM = Path(__file__).with_name("label_program.py")
_LONGEST = 100  # letters of a label; a longer one is cut
_MOST_OUTPUT = 16 * MIB


class LabelError(ValueError):
    """The labels cannot be read; the message says why, and names no file."""


def read_labels(pdf: PdfFile, page_count: int) -> list[str]:
    """Return one label a page; an empty one where the PDF names none.

    Raises:
        LabelError: pypdf fails, exceeds the bounds of `pdf`, or counts other pages than poppler.
    """
    request = {
        "path": str(pdf.path),
        "password": pdf.password,
        "sys_path": [folder for folder in sys.path if folder],  # the empty one is the current folder, whosever it is
        "longest": _LONGEST,
    }
    command = [sys.executable, "-I", "-S", str(_PROGRAM)]  # isolated: the request says where pypdf is
    done = run_bounded(command, pdf.bounds, most_output=_MOST_OUTPUT, given=json.dumps(request).encode())
    if done.failure:
        raise LabelError(f"reading them {done.failure}")
    if done.status != 0:
        raise LabelError((done.messages.strip().splitlines() or [f"pypdf ended with status {done.status}"])[-1])
    found = json.loads(done.output)
    if found is None:
        return [""] * page_count
    labels = [_one_line(label) for label in found]
    if len(labels) != page_count:
        raise LabelError(f"pypdf sees {len(labels)} pages, poppler {page_count}")
    return labels


def _one_line(label: str) -> str:
    return "".join(letter if letter.isprintable() else " " for letter in encodable(label)).strip()
