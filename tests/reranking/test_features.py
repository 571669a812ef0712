import torch
from PIL import Image

from llama_index_ziprerank.reranking import ListwiseReranker
from llama_index_ziprerank.reranking.features import page_features
from llama_index_ziprerank.reranking.inputs import prepare_page


def test_a_page_has_the_same_features_alone_and_in_any_batch(
    reranker: ListwiseReranker, mixed_pages: list[Image.Image]
) -> None:
    pages = [prepare_page(reranker.processor, page) for page in mixed_pages]
    together = page_features(reranker.model, pages)
    in_pairs = page_features(reranker.model, pages, patches_per_call=sum(len(p.pixel_values) for p in pages[:2]))
    alone = page_features(reranker.model, iter(pages), patches_per_call=1)
    for a, b, c in zip(together, in_pairs, alone, strict=True):
        assert a.grid == b.grid == c.grid
        torch.testing.assert_close(a.merged, c.merged)
        torch.testing.assert_close(b.merged, c.merged)
        torch.testing.assert_close(a.deepstack, c.deepstack)


def test_features_are_those_of_the_plain_tower(reranker: ListwiseReranker, mixed_pages: list[Image.Image]) -> None:
    page = prepare_page(reranker.processor, mixed_pages[0])
    [features] = page_features(reranker.model, [page])
    with torch.no_grad():
        plain = reranker.model.get_image_features(page.pixel_values, torch.tensor([page.grid]))
    assert torch.equal(features.merged, plain.pooler_output[0])
    assert len(features.deepstack) == 3
    for ours, theirs in zip(features.deepstack, plain.deepstack_features, strict=True):
        assert torch.equal(ours, theirs[0])
