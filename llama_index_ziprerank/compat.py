"""What others got wrong or have only later: torchvision beside a CPU build of torch, Ctrl-C in Python 3.10's asyncio.

Every torchvision wheel on PyPI is built for CUDA. Beside a CPU torch, importing it raises
``operator torchvision::nms does not exist``, and transformers' processors and colpali-engine fail with it.
The operators that are missing are never called by us: declaring their schemas is enough for the import.
Where torchvision imports by itself this module changes nothing.
"""

import importlib
import sys
from collections.abc import Coroutine
from typing import Any, TypeVar

import torch

if sys.version_info >= (3, 11):
    from asyncio import Runner
else:
    from backports.asyncio.runner import Runner

T = TypeVar("T")

_MISSING_OPERATOR_SCHEMAS = (
    "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
)
_declared: list[torch.library.Library] = []  # a Library withdraws its schemas when it is garbage collected


def import_torchvision() -> None:
    """Import torchvision, declaring the operators that a CPU torch cannot register.

    Call before the first import of a transformers processor or of colpali-engine. Safe to call again.

    Raises:
        RuntimeError: when torchvision fails to import for any other reason.
    """
    try:
        importlib.import_module("torchvision")
    except RuntimeError as error:
        if "torchvision::" not in str(error):
            raise
        library = torch.library.Library("torchvision", "FRAGMENT")
        for schema in _MISSING_OPERATOR_SCHEMAS:
            library.define(schema)
        _declared.append(library)
        for name in [name for name in sys.modules if name.split(".")[0] == "torchvision"]:
            del sys.modules[name]
        importlib.import_module("torchvision")


def run_async(main: Coroutine[Any, Any, T]) -> T:
    """Do what `asyncio.run` does since Python 3.11: at Ctrl-C ``main`` is cancelled and ends what it is at."""
    with Runner() as runner:
        return runner.run(main)
