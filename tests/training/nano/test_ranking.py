"""nano's retriever and ranker: queries, lists, what starts where, and that both learn and reload."""

import random
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from colpali_engine.models import ColQwen3Processor
from torch.utils.data import DataLoader
from transformers import PreTrainedTokenizerFast, Qwen3VLForConditionalGeneration

from llama_index_ziprerank.labels import ManualQuery
from llama_index_ziprerank.reranking import ListwiseReranker
from llama_index_ziprerank.reranking.features import PageFeatures
from llama_index_ziprerank.reranking.inputs import build_ranking_prompt, own_side
from llama_index_ziprerank.reranking.pruning import window_inputs
from llama_index_ziprerank.reranking.scoring import identifier_logits
from llama_index_ziprerank.retrieval.encoder import MultiVectorEncoder
from llama_index_ziprerank.training.nano import (
    build,
    corpus,
    export,
    lists,
    pairs,
    queries,
    ranking,
    reading,
    retrieval,
    seeing,
)
from llama_index_ziprerank.training.nano.half_attention import LOSS_SCALE, use_half_attention
from llama_index_ziprerank.training.nano.layout import ANY, CONTENT, EMBEDDING_NORM, MARK, RESERVED, VISUAL
from llama_index_ziprerank.training.nano.model import WIDTH
from llama_index_ziprerank.training.nano.queries import PageWords

DEMO = Path(__file__).parents[3] / "demo" / "gle-manual-chapters-4-9.pdf"
NO_WORDS = (np.zeros(0, np.uint32), np.zeros((0, 4), np.float32))
"""Codes and boxes of a page that shows none."""
VOCABULARY = ["hash", "table", "page", "words", "draw", "bar", "graph", "holds"]


@pytest.fixture(scope="module")
def seen() -> list[pairs.SeenPage]:
    """Twelve pages of 4 x 4 tokens, one word of the vocabulary under each token, in two manuals."""
    rng = random.Random(0)
    pages = []
    for number in range(12):
        words = [f"{rng.choice(VOCABULARY)}{number}x{place}" for place in range(16)]
        places = np.array(
            [[(row + 0.5) / 4, (column + 0.5) / 4] for row in range(4) for column in range(4)], np.float32
        )
        text = PageWords(f"manual{number % 2}", words, [word.lower() for word in words], places, np.full(16, 0.01))
        pages.append(pairs.SeenPage(text, torch.randn(4, 4, WIDTH).half()))
    return pages


def test_a_query_is_made_of_words_that_stand_on_its_page(seen: list[pairs.SeenPage]) -> None:
    rarity = queries.inverse_document_frequency([page.words for page in seen])
    rng = random.Random(1)
    for page in seen:
        query = queries.make_query(page.words, np.arange(16), rarity, rng)
        assert query is not None
        assert set(queries.terms_of(query)) & set(page.words.terms)


def test_a_batch_of_pairs_comes_from_few_manuals(seen: list[pairs.SeenPage]) -> None:
    drawn = pairs.PairMaker(seen).pairs(4, (2, 2), manuals=1)
    assert len(drawn) == 4 and all(len(block.features.merged) == 4 for _, block in drawn)


def ranker(reader: reading.Reader, tokenizer: PreTrainedTokenizerFast) -> Qwen3VLForConditionalGeneration:
    """A ranker as it starts: words are compared as they are, and those of the vocabulary tell something."""
    rarity = torch.zeros(len(tokenizer))
    rarity[tokenizer(" ".join([*VOCABULARY, "?"]), add_special_tokens=False).input_ids] = 1
    retriever = export.build_retriever(reader, tokenizer, EMBEDDING_NORM, rarity)
    return export.build_reranker(retriever, tokenizer, torch.eye(320))


def shown(model: Qwen3VLForConditionalGeneration, tokenizer: PreTrainedTokenizerFast, words: list[str]) -> PageFeatures:
    """A page of 4 x 4 tokens that shows words among nothing that could be read."""
    merged = torch.randn(16, WIDTH)
    merged[:, RESERVED] = 0
    merged *= EMBEDDING_NORM / merged.norm(dim=-1, keepdim=True)
    for place, word in zip((9, 6, 3), words, strict=False):
        [token] = tokenizer(word, add_special_tokens=False).input_ids
        merged[place] = model.get_input_embeddings().weight[token].detach()
    merged[:, RESERVED] = 0
    merged[:, [VISUAL, ANY]] = MARK
    return PageFeatures(merged, (), (1, 8, 8))


def score(
    model: Qwen3VLForConditionalGeneration, tokenizer: PreTrainedTokenizerFast, query: str, pages: list[PageFeatures]
) -> list[float]:
    """The letters' logits."""
    prompt = build_ranking_prompt(export.build_processor(tokenizer), query, [page.grid for page in pages])
    [logits] = identifier_logits(model, [window_inputs(model, prompt, pages)])
    return logits.tolist()


@pytest.mark.parametrize("place", range(5))
def test_a_word_votes_for_the_page_that_shows_it(
    reader: reading.Reader, tokenizer: PreTrainedTokenizerFast, place: int
) -> None:
    model = ranker(reader, tokenizer)
    pages = [shown(model, tokenizer, ["graph"] if index == place else []) for index in range(5)]
    assert np.argmax(score(model, tokenizer, "graph", pages)) == place


@pytest.mark.parametrize("place", range(3))
def test_a_page_with_all_words_beats_pages_that_show_one_of_them_more_often(
    reader: reading.Reader, tokenizer: PreTrainedTokenizerFast, place: int
) -> None:
    model = ranker(reader, tokenizer)
    words = [["bar"] * 3, ["graph"] * 3]
    words.insert(place, ["bar", "graph"])
    pages = [shown(model, tokenizer, some) for some in words]
    assert np.argmax(score(model, tokenizer, "bar graph", pages)) == place


def test_among_equals_the_first_stage_decides(reader: reading.Reader, tokenizer: PreTrainedTokenizerFast) -> None:
    model = ranker(reader, tokenizer)
    logits = score(model, tokenizer, "graph", [shown(model, tokenizer, ["graph"])] * 20)
    place = np.log(np.arange(1, 21))
    expected = np.polyval(np.polyfit(place, logits, 1), place)
    assert np.corrcoef(place, logits)[0, 1] < -0.99 and np.abs(logits - expected).max() < 0.05 * np.ptp(logits)


def test_a_question_mark_has_no_vote(reader: reading.Reader, tokenizer: PreTrainedTokenizerFast) -> None:
    model = ranker(reader, tokenizer)
    torch.manual_seed(0)
    pages = [shown(model, tokenizer, some) for some in (["bar"], ["?"] * 3, ["graph", "bar"], ["graph"])]
    plain, asked = (score(model, tokenizer, query, pages) for query in ("bar graph", "bar graph?"))
    assert np.allclose(np.subtract(plain, plain[0]), np.subtract(asked, asked[0]), atol=0.05 * np.ptp(plain))


def test_the_retriever_learns_and_loads_through_the_encoder(
    seen: list[pairs.SeenPage], reader: reading.Reader, tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    model = export.build_retriever(reader, tokenizer, EMBEDDING_NORM, torch.ones(len(tokenizer)))
    export.save_retriever(model, export.build_processor(tokenizer), tmp_path)
    config = retrieval.RetrievalConfig(minutes=0.03, blocks=((1.0, (2, 2), 4),))
    own = ColQwen3Processor.from_pretrained(tmp_path)
    retrieval.train_retrieval(model, own, pairs.PairMaker(seen), config, tmp_path / "log")
    assert not model.language_model.layers[0].mlp.down_proj.weight[RESERVED].any()
    assert model.language_model.layers[0].mlp.down_proj.weight[:CONTENT].any()
    export.save_retriever(model, export.build_processor(tokenizer), tmp_path)
    encoder = MultiVectorEncoder.from_pretrained(str(tmp_path), device="cpu")
    assert MultiVectorEncoder.from_pretrained(str(tmp_path), device="cpu", dtype="auto").model.dtype == torch.float32
    [vectors] = encoder.encode_queries(["hash table"])
    with torch.no_grad():
        mine = retrieval.encode_queries(model.eval(), own, ["hash table"])[0]
    assert np.allclose(vectors, mine.numpy(), atol=2e-3)  # half precision on disk


def test_the_saved_ranker_ranks_as_the_shipped_one(
    reader: reading.Reader, tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    processor = export.build_processor(tokenizer)
    export.save_reranker(ranker(reader, tokenizer), processor, tmp_path)
    made, shipped = (ListwiseReranker.from_pretrained(name, device="cpu") for name in (str(tmp_path), "nano"))
    assert (made.options(), made.sides) == (shipped.options(), shipped.sides)
    assert made.processor.image_processor.to_dict() == shipped.processor.image_processor.to_dict()
    assert own_side(processor) == 1024  # lists are learned from smaller pages, and the retriever has them


def listed(model: Qwen3VLForConditionalGeneration, tokenizer: PreTrainedTokenizerFast) -> lists.ListedManual:
    """A manual of eight pages, one for each word, that the first stage puts in the wrong order."""
    pages = [shown(model, tokenizer, [word]) for word in VOCABULARY]
    asked = [ManualQuery("heading", word, (number,)) for number, word in enumerate(VOCABULARY, start=1)]
    return lists.ListedManual(asked, list(range(1, 9)), pages, 1 - torch.eye(8))


def test_a_list_holds_its_answer_and_the_best_of_the_first_stage(
    reader: reading.Reader, tokenizer: PreTrainedTokenizerFast
) -> None:
    manual = listed(ranker(reader, tokenizer), tokenizer)
    manual = lists.ListedManual(manual.queries, manual.numbers, manual.pages, 10 * torch.eye(8))
    maker = lists.ListMaker([manual], export.build_processor(tokenizer))
    rng = random.Random(0)
    drawn = [maker.draw(4, rng) for _ in range(20)]
    assert all(len(maker.features(each)) == 4 and len(each.answers) == 1 for each in drawn)
    assert sum(each.answers == [0] for each in drawn) >= 18  # the first stage is sure of itself, so noise does little


def test_a_list_is_the_same_after_its_way_between_processes(
    reader: reading.Reader, tokenizer: PreTrainedTokenizerFast
) -> None:
    maker = lists.ListMaker([listed(ranker(reader, tokenizer), tokenizer)], export.build_processor(tokenizer))
    drawn = maker.draw(4, random.Random(0))
    again = lists.unpack(lists.pack(drawn))
    assert (again.manual, again.pages, again.answers) == (drawn.manual, drawn.pages, drawn.answers)
    assert again.prompt.visual_counts == drawn.prompt.visual_counts
    for name, value in vars(drawn.prompt).items():
        assert isinstance(value, tuple) or torch.equal(value, getattr(again.prompt, name))


def test_a_manual_without_questions_is_no_source_of_lists(tokenizer: PreTrainedTokenizerFast) -> None:
    with pytest.raises(ValueError, match="bookmarks or an index"):
        lists.ListMaker([], export.build_processor(tokenizer))


def test_the_ranker_learns_from_lists_and_keeps_its_eyes(
    reader: reading.Reader, tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    model = ranker(reader, tokenizer)
    manual = listed(model, tokenizer)
    torch.manual_seed(0)
    blank = [shown(model, tokenizer, []) for _ in manual.pages]  # nothing to be read: only the place tells
    maker = lists.ListMaker(
        [lists.ListedManual(manual.queries, manual.numbers, blank, manual.scores)], export.build_processor(tokenizer)
    )
    before = {name: weight.detach().clone() for name, weight in model.named_parameters()}
    config = ranking.RankingConfig(minutes=0.1, learning_rate=1e-2, batch=2, warmup_steps=1, save_every=1)
    fixed = [maker.draw(8, random.Random(seed)) for seed in range(6)]
    loss_before, _ = ranking.learn(model, maker, fixed, 0.25, "query")
    model.zero_grad()
    ranking.train_ranking(model, maker, config, tmp_path)
    loss_after, _ = ranking.learn(model, maker, fixed, 0.25, "query")
    assert loss_after < loss_before
    changed = {name for name, weight in model.named_parameters() if not torch.equal(weight, before[name])}
    assert any("layers.0" in name for name in changed) and not any("visual" in name for name in changed)
    frozen = [name for name, weight in model.named_parameters() if not weight.requires_grad]
    assert any("q_proj" in name for name in frozen) and not changed & set(frozen)
    assert (tmp_path / "ranking.safetensors").exists()


def test_processes_draw_lists_of_their_own(reader: reading.Reader, tokenizer: PreTrainedTokenizerFast) -> None:
    maker = lists.ListMaker([listed(ranker(reader, tokenizer), tokenizer)], export.build_processor(tokenizer))
    steps = ranking.Steps(maker, ranking.RankingConfig(batch=2), seed=0.5)
    drawn = iter(DataLoader(steps, batch_size=None, num_workers=2))
    size, keep_ratio, pruning, packed = next(drawn)
    *_, others = next(drawn)
    first, second = ([lists.unpack(each) for each in some] for some in (packed, others))
    assert size in ranking.SIZES and 0 < keep_ratio <= 1 and pruning in ("query", "prompt")
    assert [each.pages for each in first] != [each.pages for each in second]
    assert all(len(maker.features(each)) == 8 for each in first)  # as many as the manual has


def test_half_precision_in_attention_keeps_the_order_and_the_gradients(
    reader: reading.Reader, tokenizer: PreTrainedTokenizerFast
) -> None:
    model = ranker(reader, tokenizer)
    maker = lists.ListMaker([listed(model, tokenizer)], export.build_processor(tokenizer))
    drawn = [maker.draw(8, random.Random(seed)) for seed in range(3)]
    looks = model.model.language_model.layers[0].self_attn.q_proj.weight
    outcomes = []
    for scale in (1.0, LOSS_SCALE):
        loss, _ = ranking.learn(model, maker, drawn, 0.25, "query", scale)
        outcomes.append((loss, looks.grad.clone()))
        model.zero_grad()
        use_half_attention(model)
    (loss, gradient), (loss_half, gradient_half) = outcomes
    assert model.config.text_config._attn_implementation == "half_precision" and loss != loss_half
    assert loss_half == pytest.approx(loss, rel=0.02)
    assert torch.cosine_similarity(gradient.flatten(), gradient_half.flatten(), dim=0) > 0.98


def test_a_manual_asks_its_own_questions_and_the_first_stage_answers(
    seen: list[pairs.SeenPage], reader: reading.Reader, tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    model = export.build_retriever(reader, tokenizer, EMBEDDING_NORM, torch.ones(len(tokenizer)))
    export.save_retriever(model, export.build_processor(tokenizer), tmp_path)
    own = ColQwen3Processor.from_pretrained(tmp_path)
    of_demo = [
        pairs.SeenPage(replace(page.words, manual=DEMO.stem), page.merged, number) for number, page in enumerate(seen)
    ]
    [manual] = lists.list_manuals([DEMO], of_demo, model, own, tmp_path / "lists")
    assert set(manual.numbers) <= set(range(1, 13)) and len(manual.pages) == len(manual.numbers)
    assert manual.scores.shape == (len(manual.queries), len(manual.pages)) and len(manual.queries) > 3
    assert {"heading", "question"} <= set(manual.by_kind())
    assert all(set(query.pages) <= set(manual.numbers) for query in manual.queries)
    assert lists.list_manuals([DEMO], of_demo[:4], model, own, tmp_path / "few") == []
    model.custom_text_proj.weight.data.zero_()  # nothing is scored again
    [again] = lists.list_manuals([DEMO], of_demo, model, own, tmp_path / "lists")
    assert torch.equal(again.scores, manual.scores)


def test_some_manuals_look_scanned_in_the_lists(
    reader: reading.Reader, tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    drawn = [tmp_path / "corpus" / name / "0003.npz" for name in ("first", "second", "third", "fourth")]
    page = corpus.CorpusPage(
        "", 3, np.where(np.arange(96 * 64).reshape(96, 64) % 9 < 3, 0, 255).astype(np.uint8), *NO_WORDS
    )
    for path in drawn:
        path.parent.mkdir(parents=True)
        np.savez(path, image=page.image, codes=page.codes, boxes=page.boxes)
    plan = build.Plan(tmp_path, 1.0, "cpu")
    eyes = export.build_eyes(reader, tokenizer, EMBEDDING_NORM)
    seeing.see_pages(eyes, tokenizer, drawn, tmp_path / "seen")
    seen = seeing.load_seen(tmp_path / "corpus", tmp_path / "seen")
    worn = build.see_worn(plan, eyes, tokenizer, drawn)
    assert len(worn) == round(build.WORN_SHARE * 4)
    shown = {each.words.manual: each.merged for each in build.shown_in_lists(seen, worn)}
    clean = {each.words.manual: each.merged for each in seen}
    assert shown.keys() == clean.keys()
    looks_worn = {name for name in clean if not torch.equal(shown[name], clean[name])}
    assert looks_worn == {each.words.manual for each in worn}
