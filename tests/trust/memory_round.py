"""How much memory 64 concurrent calls take whose pages, all decoded, would take gigabytes: ``memory_round.py DIR``."""

import asyncio
import json
import resource
import sys
from pathlib import Path

import torch
from llama_index.core.schema import ImageNode, NodeWithScore
from PIL import Image, ImageDraw

from llama_index_ziprerank.postprocessors import ZipRerankPostprocessor

PARITY = Path(__file__).parents[1] / "data" / "parity"
CALLS, PAGES, SIZE = 64, 2, (2400, 3400)


def peak() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def call(folder: Path, number: int) -> list[NodeWithScore]:
    nodes = []
    for page in range(PAGES):
        image = Image.new("RGB", SIZE, "white")
        ImageDraw.Draw(image).text((100, 100), f"{number} {page}", fill="black", font_size=300)
        path = folder / f"{number}-{page}.png"
        image.save(path, compress_level=1)
        nodes.append(NodeWithScore(node=ImageNode(image_path=str(path))))
    return nodes


async def main(folder: Path) -> None:
    torch.set_num_threads(1)
    calls = [call(folder, number) for number in range(CALLS)]
    postprocessor = ZipRerankPostprocessor(
        model=str(PARITY / "checkpoint"), device="cpu", keep_ratio=0.1, cache_memory_bytes=0
    )
    await postprocessor.apostprocess_nodes(calls[0], query_str="toner")
    before = peak()
    await asyncio.gather(*(postprocessor.apostprocess_nodes(nodes, query_str="toner") for nodes in calls))
    whole = CALLS * PAGES * SIZE[0] * SIZE[1] * 3 / 2**20
    print(json.dumps({"megabytes of pages": round(whole), "megabytes grown": round(peak() - before)}))


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1])))
