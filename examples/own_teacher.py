"""Your own teacher: anything that reads a prompt and pages and answers in words can order training lists.

    pip install 'llama-index-ziprerank[training]'
    python examples/own_teacher.py labels.jsonl

The teacher here is nano itself, which reads every list in three orders, since these pages come in no order.
Put the call of your own model in its place. For any LLM of LlamaIndex that sees images there is
`llama_index_ziprerank.teachers.LLMTeacher(llm)`; for a server with OpenAI's protocol, the command `ziprerank label`.
"""

import asyncio
import re
import sys
from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from llama_index_ziprerank.reranking import ListwiseReranker
from llama_index_ziprerank.training.teacher import LabelFile, PageImages, Teacher, TeacherQuery, label_queries

MANUAL = Path(__file__).parent.parent / "demo" / "gle-manual-chapters-4-9.pdf"
PAGES = tuple(f"{MANUAL.name}#{number}" for number in range(1, 5))
QUESTIONS = {"q1": ("How are error bars drawn?", PAGES[3]), "q2": ("comments in a data file", PAGES[2])}


class ThreeReadings:
    """Reads each list in three orders and answers in letters, "[B] > [A]"."""

    def __init__(self) -> None:
        self._reranker = ListwiseReranker.from_pretrained("nano")

    async def __call__(self, prompt: str, images: Sequence[Image.Image]) -> str:
        """Order the images by the question in the prompt."""
        question = re.findall(r"Search Query: (.*)", prompt)[-1]
        ranking = await asyncio.to_thread(self._reranker.rerank, question, images, permutations=3)
        return " > ".join(f"[{chr(ord('A') + page)}]" for page in ranking.order)


async def label(to: Path) -> None:
    """Order the candidates of every question that the file does not hold yet."""
    queries = [
        TeacherQuery(name, question, MANUAL.name, "manuals", PAGES, (answer,), None)
        for name, (question, answer) in QUESTIONS.items()
    ]
    with PageImages(MANUAL.parent, side=1024) as images, LabelFile(to) as labels:
        await label_queries(queries, images.image, Teacher(ThreeReadings()), labels)


def main(to: str = "labels.jsonl") -> None:
    """Write the labels and show them."""
    asyncio.run(label(Path(to)))
    print(Path(to).read_text(encoding="utf-8").strip())


if __name__ == "__main__":
    main(*sys.argv[1:2])
