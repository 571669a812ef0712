import pytest
from PIL import Image
from tiny_retriever import PARITY

from llama_index_ziprerank.evaluation.first_stage import HeadReranker, RerankSettings
from llama_index_ziprerank.reranking import ListwiseReranker

PAGES = {f"p{number}": PARITY.parent / "pages" / f"small-{number:03d}.png" for number in range(12, 18)}


def _open(name: str) -> Image.Image:
    return Image.open(PAGES[name]).convert("RGB")


def test_the_head_is_in_the_rerankers_order_and_the_tail_stays() -> None:
    model = ListwiseReranker.from_pretrained(str(PARITY))
    order = model.rerank("line width", [_open(name) for name in list(PAGES)[:4]], keep_ratio=0.5).order
    rerank = HeadReranker(RerankSettings(str(PARITY), top_k=4, keep_ratio=0.5))

    assert rerank("line width", list(PAGES), _open) == [f"p{12 + i}" for i in order] + ["p16", "p17"]
    assert rerank("line width", [], _open) == []


@pytest.mark.parametrize(("feature_bytes", "opened"), [(1 << 30, 6), (1, 12)])
def test_a_page_is_opened_once_while_memory_lasts(feature_bytes: int, opened: int) -> None:
    seen: list[str] = []

    def note(name: str) -> Image.Image:
        seen.append(name)
        return _open(name)

    rerank = HeadReranker(RerankSettings(str(PARITY)), feature_bytes=feature_bytes)
    first, second = (rerank("line width", list(PAGES), note) for _ in range(2))

    assert first == second
    assert len(seen) == opened


@pytest.mark.parametrize("wrong", [{"top_k": 0}, {"keep_ratio": 1.5}, {"pruning": "all"}])
def test_a_setting_out_of_bounds_is_named(wrong: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        RerankSettings(**wrong)  # type: ignore[arg-type]
