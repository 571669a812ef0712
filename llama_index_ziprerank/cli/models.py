"""`ziprerank models`: which checkpoints to choose from."""

from dataclasses import asdict, dataclass

from rich.table import Column, Table

from llama_index_ziprerank.checkpoints import EMBEDDED
from llama_index_ziprerank.cli.console import AsJson, out, print_json


@dataclass(frozen=True)
class Checkpoint:
    """A model, by the name that its option takes."""

    option: str
    name: str
    remark: str


_SHIPPED = "ships with the package: small, offline, for a CPU"

CHECKPOINTS = (
    Checkpoint("--model", EMBEDDED, _SHIPPED),
    Checkpoint("--model", "mtri-admin/ZipRerank", "8B, the paper's, for a GPU"),
    Checkpoint("--retriever", EMBEDDED, _SHIPPED),
    Checkpoint("--retriever", "vidore/colSmol-256M", "ColIdefics3, 256M"),
    Checkpoint("--retriever", "vidore/colqwen2-v1.0", "ColQwen2, 2B"),
    Checkpoint("--retriever", "vidore/colqwen2.5-v0.2", "ColQwen2.5, 3B"),
    Checkpoint("--retriever", "vidore/colpali-v1.3", "ColPali, 3B"),
)


def models(as_json: AsJson = False) -> None:
    """List models to choose from.

    Any other Qwen3-VL reranker or multi-vector retriever of colpali-engine works too: name its folder, or its
    repository on the Hugging Face Hub.
    """
    if as_json:
        print_json([asdict(checkpoint) for checkpoint in CHECKPOINTS])
        return
    table = Table(*(Column(name, overflow="fold") for name in ("option", "name", "what it is")), box=None)
    for checkpoint in CHECKPOINTS:
        table.add_row(checkpoint.option, checkpoint.name, checkpoint.remark)
    out.print(table)
