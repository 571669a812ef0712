"""A program of its own, run by `labels.py`: print the page labels of a PDF as a JSON list.

It imports nothing of the package, so that it starts quickly. Its standard input is a JSON object with the `path` of
the PDF, its `password` or null, the `sys_path` to find pypdf on, and the letters that are kept of a label (`longest`).
"""

import json
import logging
import sys


def main() -> None:
    """Read the request, write the labels; an error is left to end the program."""
    request = json.load(sys.stdin)
    sys.path[:] = request["sys_path"]
    from pypdf import PdfReader

    logging.disable()  # what pypdf remarks on along the way concerns nobody
    labels = PdfReader(request["path"], password=request["password"]).page_labels
    json.dump([label[: request["longest"]] for label in labels], sys.stdout)


if __name__ == "__main__":
    main()
