"""What a fine-tuned reranker is measured with is what its users get."""

import json
import shutil
from pathlib import Path

from PIL import Image
from tiny_retriever import PARITY

from llama_index_ziprerank.evaluation.tracking import silently
from llama_index_ziprerank.labels import label_manual
from llama_index_ziprerank.training.cache import FeatureCache
from llama_index_ziprerank.training.finetune.documents import Document
from llama_index_ziprerank.training.finetune.measure import rerank
from llama_index_ziprerank.training.finetune.questions import Asked
from llama_index_ziprerank.training.recipes import Stage2


def _orders(checkpoint: Path) -> dict[str, list[int]]:
    pages = ["one", "two", "three", "four"]
    document = Document("manual", pages, label_manual([], pages, ["1", "2", "3", "4"], ()))
    ranked = [(page, float(-page)) for page in (1, 2, 3, 4)]

    def image(name: str) -> Image.Image:
        return Image.effect_noise((200, 280), 20 * int(name[-1])).convert("RGB")

    asked = [Asked("q", document, "the axis", (3,))]
    return rerank(str(checkpoint), asked, {"q": ranked}, image, Stage2(), FeatureCache(0), silently)


def test_the_first_stage_counts_as_the_checkpoint_says(tmp_path: Path) -> None:
    copy = Path(shutil.copytree(PARITY, tmp_path / "copy"))
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps({**config, "first_stage_weight": 1000.0}))

    assert _orders(copy) == {"q": [1, 2, 3, 4]} != _orders(PARITY)
