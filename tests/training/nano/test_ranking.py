"""nano's retriever and ranker: queries, lists, what starts where, and that both learn and reload."""

import random
from pathlib import Path

import numpy as np
import pytest
import torch
from colpali_engine.models import ColQwen3Processor
from transformers import PreTrainedTokenizerFast, Qwen3VLForConditionalGeneration, Qwen3VLProcessor

from llama_index_ziprerank.reranking import ListwiseReranker
from llama_index_ziprerank.reranking.features import PageFeatures
from llama_index_ziprerank.reranking.inputs import build_ranking_prompt
from llama_index_ziprerank.reranking.pruning import window_inputs
from llama_index_ziprerank.reranking.scoring import identifier_logits
from llama_index_ziprerank.retrieval.encoder import MultiVectorEncoder
from llama_index_ziprerank.training.nano import export, lists, queries, ranking, reading, retrieval, voting
from llama_index_ziprerank.training.nano.layout import ANY, CONTENT, EMBEDDING_NORM, MARK, RESERVED, VISUAL
from llama_index_ziprerank.training.nano.model import WIDTH
from llama_index_ziprerank.training.nano.queries import PageWords

VOCABULARY = ["hash", "table", "page", "words", "draw", "bar", "graph", "holds"]


@pytest.fixture(scope="module")
def seen() -> list[lists.SeenPage]:
    """Twelve pages of 4 x 4 tokens, one word of the vocabulary under each token, in two manuals."""
    rng = random.Random(0)
    pages = []
    for number in range(12):
        words = [f"{rng.choice(VOCABULARY)}{number}x{place}" for place in range(16)]
        places = np.array(
            [[(row + 0.5) / 4, (column + 0.5) / 4] for row in range(4) for column in range(4)], np.float32
        )
        text = PageWords(f"manual{number % 2}", words, [word.lower() for word in words], places, np.full(16, 0.01))
        pages.append(lists.SeenPage(text, torch.randn(4, 4, WIDTH).half()))
    return pages


@pytest.fixture
def processor(tokenizer: PreTrainedTokenizerFast) -> Qwen3VLProcessor:
    return export.build_processor(tokenizer)


def test_a_query_is_made_of_words_that_stand_on_its_page(seen: list[lists.SeenPage]) -> None:
    rarity = queries.inverse_document_frequency([page.words for page in seen])
    rng = random.Random(1)
    for page in seen:
        query = queries.make_query(page.words, np.arange(16), rarity, rng)
        assert query is not None
        assert set(queries.terms_of(query)) & set(page.words.terms)


def test_the_teacher_is_bm25() -> None:
    rarity = {"hash": 2.0, "table": 1.0}
    candidates = [["hash", "page"], ["hash", "table"], ["hash", "hash"], ["hash", "page", "page", "page"], ["page"]]
    scores = queries.relevances("Hash of a table", candidates[:3], rarity)
    assert scores == pytest.approx([2.0, 3.0, 4 * 2.5 / 3.5])
    scores = queries.relevances("Hash of a hash table", candidates, rarity)
    assert scores[3] < scores[0] and scores[4] == 0.0


def test_in_a_list_the_positive_comes_first_in_the_teachers_order(seen: list[lists.SeenPage]) -> None:
    maker = lists.ListMaker(seen)
    for size in ((2, 2), None):
        drawn = maker.draw(4, size)
        assert len(drawn.candidates) == 4 and sorted(drawn.order) == [0, 1, 2, 3]
        scores = queries.relevances(drawn.query, [block.terms for block in drawn.candidates], maker.rarity)
        assert scores[drawn.positive] == max(scores) == scores[drawn.order[0]]


def test_a_block_knows_which_word_stands_under_which_token(seen: list[lists.SeenPage]) -> None:
    block = lists.ListMaker(seen)._block(seen[0], (1, 1), (2, 3))
    _, place = block.placed[4]
    assert place == 4 and torch.equal(block.features.merged[4], seen[0].merged[2, 2].float())


def test_a_batch_of_pairs_comes_from_few_manuals(seen: list[lists.SeenPage]) -> None:
    pairs = lists.ListMaker(seen).pairs(4, (2, 2), manuals=1)
    assert len(pairs) == 4 and all(len(block.features.merged) == 4 for _, block in pairs)


def ranker(reader: reading.Reader, tokenizer: PreTrainedTokenizerFast) -> Qwen3VLForConditionalGeneration:
    """A ranker as it starts: words are compared as they are, and those of the vocabulary tell something."""
    rarity = torch.zeros(len(tokenizer))
    rarity[tokenizer(" ".join(VOCABULARY), add_special_tokens=False).input_ids] = 1
    retriever = export.build_retriever(reader, tokenizer, EMBEDDING_NORM, rarity)
    return export.build_reranker(retriever, tokenizer, torch.eye(320))


@pytest.mark.parametrize("place", range(5))
def test_before_training_a_word_votes_for_the_page_that_shows_it(
    seen: list[lists.SeenPage], reader: reading.Reader, tokenizer: PreTrainedTokenizerFast, place: int
) -> None:
    model = ranker(reader, tokenizer)
    [word] = tokenizer("graph", add_special_tokens=False).input_ids
    pages = []
    for index in range(5):
        merged = torch.randn(4, 4, WIDTH)
        merged[..., RESERVED] = 0
        merged *= EMBEDDING_NORM / merged.norm(dim=-1, keepdim=True)
        if index == place:
            merged[2, 1] = model.get_input_embeddings().weight[word].detach()
        merged[..., RESERVED] = 0
        merged[..., [VISUAL, ANY]] = MARK
        pages.append(PageFeatures(merged.flatten(0, 1), (), (1, 8, 8)))
    prompt = build_ranking_prompt(export.build_processor(tokenizer), "graph", [page.grid for page in pages])
    [logits] = identifier_logits(model, [window_inputs(model, prompt, pages)])
    assert logits.argmax() == place


def test_ranking_learns_resumes_and_loads_through_the_front_door(
    seen: list[lists.SeenPage], reader: reading.Reader, tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    processor = export.build_processor(tokenizer)
    model = ranker(reader, tokenizer)
    before = model.model.language_model.layers[-2].self_attn.q_proj.weight.clone()
    tower = model.model.visual.merger.linear_fc1.weight.clone()
    config = ranking.RankingConfig(minutes=0.03, levels=(ranking.Level(1.0, 2, (2, 2), tokens=400),))
    ranking.train_ranking(model, processor, lists.ListMaker(seen), config, tmp_path)
    assert not torch.equal(before, model.model.language_model.layers[-2].self_attn.q_proj.weight)
    assert torch.equal(tower, model.model.visual.merger.linear_fc1.weight)
    again = ranker(reader, tokenizer)
    ranking.train_ranking(again, processor, lists.ListMaker(seen), config, tmp_path)  # its time is over
    assert torch.equal(again.get_input_embeddings().weight, model.get_input_embeddings().weight)
    export.save_reranker(model, processor, tmp_path / "reranker")
    reloaded = ListwiseReranker.from_pretrained(str(tmp_path / "reranker"))
    query = "hash table"
    prompts = [build_ranking_prompt(p, query, [(1, 4, 4)] * 2) for p in (processor, reloaded.processor)]
    assert torch.equal(prompts[0].input_ids, prompts[1].input_ids)


def test_the_retriever_learns_and_loads_through_the_encoder(
    seen: list[lists.SeenPage], reader: reading.Reader, tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    model = export.build_retriever(reader, tokenizer, EMBEDDING_NORM, torch.ones(len(tokenizer)))
    export.save_retriever(model, export.build_processor(tokenizer), tmp_path)
    config = retrieval.RetrievalConfig(minutes=0.03, blocks=((1.0, (2, 2), 4),))
    own = ColQwen3Processor.from_pretrained(tmp_path)
    retrieval.train_retrieval(model, own, lists.ListMaker(seen), config, tmp_path / "log")
    assert not model.language_model.layers[0].mlp.down_proj.weight[RESERVED].any()
    assert model.language_model.layers[0].mlp.down_proj.weight[:CONTENT].any()
    export.save_retriever(model, export.build_processor(tokenizer), tmp_path)
    encoder = MultiVectorEncoder.from_pretrained(str(tmp_path), device="cpu")
    [vectors] = encoder.encode_queries(["hash table"])
    with torch.no_grad():
        mine = retrieval.encode_queries(model.eval(), own, ["hash table"])[0]
    assert np.allclose(vectors, mine.numpy(), atol=2e-3)  # half precision on disk


def test_questions_that_share_pages_get_the_scores_of_their_own_prompts(
    seen: list[lists.SeenPage],
    reader: reading.Reader,
    tokenizer: PreTrainedTokenizerFast,
    processor: Qwen3VLProcessor,
) -> None:
    model = ranker(reader, tokenizer)
    words = model.get_input_embeddings().weight.detach()
    for layer in model.model.language_model.layers[:2]:  # what neighbours show must be read for this to prove anything
        torch.nn.init.normal_(layer.self_attn.o_proj.weight[:CONTENT], std=0.02)
    pairs = lists.ListMaker(seen, seed=3).pairs(6, (4, 4), manuals=2)
    blocks = [block for _, block in pairs]
    for block in blocks:  # as a tower that reads would leave them
        block.features.merged.mul_(0.1)
        for term, place in block.placed:
            block.features.merged[place] += words[tokenizer(term, add_special_tokens=False).input_ids[0]]
        block.features.merged[:, RESERVED] = 0
        block.features.merged[:, [VISUAL, ANY]] = MARK
    with torch.no_grad():
        shared = voting.shared_logits(model, processor, [query for query, _ in pairs], blocks)
        for (query, _), scores in zip(pairs, shared, strict=True):
            features = [block.features for block in blocks]
            prompt = build_ranking_prompt(processor, query, [page.grid for page in features])
            [own] = identifier_logits(model, [window_inputs(model, prompt, features)])
            assert torch.corrcoef(torch.stack([own, scores]))[0, 1] > 0.85  # a little leaks from page to page


def test_voting_learns_and_keeps_where_the_first_layers_look(
    seen: list[lists.SeenPage],
    reader: reading.Reader,
    tokenizer: PreTrainedTokenizerFast,
    processor: Qwen3VLProcessor,
    tmp_path: Path,
) -> None:
    model = ranker(reader, tokenizer)
    look, compare = (model.model.language_model.layers[i].self_attn.q_proj.weight.clone() for i in (0, -2))
    config = voting.VotingConfig(minutes=0.03, blocks=((1.0, (2, 2)),), pages=4)
    voting.train_votes(model, processor, lists.ListMaker(seen), config, tmp_path)
    assert torch.equal(look, model.model.language_model.layers[0].self_attn.q_proj.weight)
    assert not torch.equal(compare, model.model.language_model.layers[-2].self_attn.q_proj.weight)
    again = ranker(reader, tokenizer)
    voting.train_votes(again, processor, lists.ListMaker(seen), config, tmp_path)  # its time is over
    assert torch.equal(again.get_input_embeddings().weight, model.get_input_embeddings().weight)
