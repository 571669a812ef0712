"""A program of its own, run by `labels.py`: print the page labels of a PDF as a JSON list, or null.

Null says that the PDF names none: pypdf would take seconds to list hundreds of pages, and give their numbers.

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
    reader = PdfReader(request["path"], password=request["password"])
    if "/PageLabels" in reader.root_object:
        json.dump([label[: request["longest"]] for label in reader.page_labels], sys.stdout)
    else:
        json.dump(None, sys.stdout)


if __name__ == "__main__":
    main()
