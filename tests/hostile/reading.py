"""Read PDFs in a process of their own, one after the other: what became of each, how long it took, how much memory.

As a program it reads paths from its standard input, a JSON object a line, and answers each with a line. The process
that starts it (`watched.py`) sees a crash or a hang of the reader, which a test inside that process could not tell.
"""

import json
import resource
import sys
import time
import warnings
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path

TIMEOUT = 10.0
"""Seconds for one program, `PDFPageReader.timeout`."""
FILE_TIMEOUT = 20.0
"""Seconds for one file, `PDFPageReader.file_timeout`."""
MAX_MEMORY = 512
"""MiB for one program, `PDFPageReader.max_memory`."""
_MAX_SIDE = 800  # pixels
_PAGES = 3  # read of each file
_LONGEST_MESSAGE = 1500


@dataclass(frozen=True)
class Outcome:
    """What became of one file."""

    result: str
    """pages, error, or a violation of the law "pages or one clear error"."""
    detail: str
    """The kind of error, or of the violation."""
    message: str
    seconds: float
    own_memory: int
    """MiB: the most that the reading process ever had in memory, up to and with this file."""
    program_memory: int
    """MiB: the same for the programs that it started."""


def main() -> None:
    """Answer every line until the input ends."""
    from llama_index_ziprerank import PDFPageReader

    print(json.dumps({"ready": True}), flush=True)
    for line in sys.stdin:
        request = json.loads(line)
        reader = PDFPageReader(
            dpi=30,
            max_side=_MAX_SIDE,
            timeout=TIMEOUT,
            file_timeout=FILE_TIMEOUT,
            max_memory=MAX_MEMORY,
            on_error=request["on_error"],
        )
        print(json.dumps(asdict(_read(reader, Path(request["path"])))), flush=True)


def _read(reader, path: Path) -> Outcome:  # type: ignore[no-untyped-def]  # imported late
    start = time.monotonic()
    with warnings.catch_warnings(record=True):
        warnings.simplefilter("always")
        try:
            documents = list(islice(reader.lazy_load_data(path), _PAGES))
            result, detail, message = "pages", f"{len(documents)}", _complaint_about(documents)
            if message:
                result = "violation"
        except Exception as error:  # which kinds come is the question
            result, detail, message = _judge(error, path), type(error).__name__, str(error)
    return Outcome(result, detail, message[: 2 * _LONGEST_MESSAGE], time.monotonic() - start, *_memory())


def _judge(error: Exception, path: Path) -> str:
    from llama_index_ziprerank.pages.page import PageError

    clear = isinstance(error, PageError) and str(path) in str(error)
    return "error" if clear and len(str(error)) < _LONGEST_MESSAGE and str(error).isprintable() else "violation"


def _complaint_about(documents) -> str:  # type: ignore[no-untyped-def]
    from llama_index_ziprerank.nodes import node_image

    if len({document.doc_id for document in documents}) < len(documents) or not documents:
        return f"{len(documents)} documents, not all with an id of their own"
    for document in documents:
        document.to_json().encode()  # as a store would write it
        image = node_image(document)
        if image is None or image.mode != "RGB" or max(image.size) > _MAX_SIDE:
            return f"page {document.metadata['page_number']} has no proper picture"
    return ""


def _memory() -> tuple[int, int]:
    usages = (resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    own, programs = (usage // 1024 for usage in usages)  # KiB on Linux
    return own, programs


if __name__ == "__main__":
    main()
