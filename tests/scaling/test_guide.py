"""The guide's Python runs as it stands, but for models, GPUs and the port."""

import re
from pathlib import Path

import pytest
from llama_index.core.llms import MockLLM
from ray import serve
from tiny_manual import tiny_manual

GUIDE = Path(__file__).parents[2] / "docs" / "guides" / "scaling.md"
STAND_INS = {
    "ray.init()": "",  # the tests have begun it
    "vidore/colqwen2-v1.0": "nano",
    "mtri-admin/ZipRerank": "nano",
    "workers=4, num_gpus=1": "workers=1",
    "num_replicas=4, num_gpus=1": 'device="cpu"',
    "localhost:8000": "127.0.0.1:PORT",
}


@pytest.mark.filterwarnings("ignore::DeprecationWarning:ray", "ignore:.*removed after:Warning")
def test_the_guide_can_be_typed_in_from_top_to_bottom(
    port: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = GUIDE.read_text(encoding="utf-8")
    for name, stand_in in STAND_INS.items():
        assert name in text
        text = text.replace(name, stand_in.replace("PORT", str(port)))
    (tmp_path / "manuals").mkdir()
    tiny_manual(tmp_path / "manuals" / "manual.pdf")
    monkeypatch.chdir(tmp_path)
    names = {"your_multimodal_llm": MockLLM(max_tokens=4, is_chat_model=True)}
    for block in re.findall(r"^```python\n(.*?)^```", text, re.MULTILINE | re.DOTALL):
        exec(block, names)

    assert [node.score for node in names["nodes"]] == sorted((node.score for node in names["nodes"]), reverse=True)
    assert names["engine"].query("How are bars drawn?").source_nodes
    names["index"].close()
    serve.delete("rerank")
