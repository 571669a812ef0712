"""Stage 0: what the tower is taught, on pages small enough to check by hand."""

import random
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import PreTrainedTokenizerFast

from llama_index_ziprerank.reranking.permutation import IDENTIFIERS, identifier_token_ids
from llama_index_ziprerank.training.nano import build, crops, export, labels, reading, synthetic, tower
from llama_index_ziprerank.training.nano.corpus import CorpusPage, iterate_words, load_text
from llama_index_ziprerank.training.nano.spelling import SpelledEmbedding, spelling_features

FONT = Path(labels.__file__).parents[2] / "pages" / "fonts" / "DejaVuSans.ttf"


def page_of(words: list[tuple[str, float, float]], height: int = 64, width: int = 128) -> CorpusPage:
    """A white page; each word's characters are 8 x 12 pixels, from (left, top)."""
    codes: list[int] = []
    boxes: list[tuple[float, float, float, float]] = []
    for word, left, top in words:
        for count, character in enumerate(word):
            codes.append(ord(character))
            boxes.append((left + 8 * count, top, left + 8 * count + 8, top + 12))
        codes.append(ord(" "))
        boxes.append((0, 0, 0, 0))
    image = np.full((height, width), 255, np.uint8)
    return CorpusPage("manual", 1, image, np.array(codes, np.uint32), np.array(boxes, np.float32).reshape(-1, 4))


def test_the_training_twin_of_the_tower_equals_transformers(reader: reading.Reader) -> None:
    gray = torch.randint(0, 256, (2, 64, 96), dtype=torch.uint8)
    torch.nn.init.normal_(reader.tower.blocks[0].attn.qkv.weight, std=0.2)
    _, merged = tower.tower_forward(reader.tower, tower.normalise(gray))
    for crop, mine in zip(gray, merged, strict=True):
        patches = tower.patchify(tower.normalise(crop[None]), 16, 2)[0]  # (P, 256)
        pixels = patches[:, None].expand(-1, 6, -1).flatten(1)  # three channels, two frames
        theirs = reader.tower(pixels, grid_thw=torch.tensor([[1, 4, 6]])).pooler_output
        assert torch.allclose(mine, theirs, atol=1e-5)


def test_white_paper_embeds_as_zero_before_training(reader: reading.Reader) -> None:
    convolution = reader.tower.patch_embed.proj
    white = torch.ones(1, 3, 2, 16, 16)
    assert convolution(white).abs().max() < 1e-3


def test_each_head_looks_at_its_neighbour_before_training(reader: reading.Reader) -> None:
    attention = reader.tower.blocks[0].attn
    side = 12
    positions = torch.cartesian_prod(torch.arange(side), torch.arange(side))
    cos, sin = reader.tower.rotary_pos_emb(torch.zeros(1), positions)
    query, key, _ = attention.qkv(torch.zeros(side * side, 192)).view(-1, 3, 4, attention.head_dim).unbind(1)
    query, key = tower.apply_rotary_pos_emb_vision(query, key, cos, sin)
    middle = 5 * side + 5
    for head, (rows, columns) in enumerate(tower.HEAD_OFFSETS):
        favourite = (query[middle, head] @ key[:, head].T).argmax()
        assert positions[favourite].tolist() == [5 + rows, 5 + columns]


def cut_one(
    page: labels.LabelledPage, top: int, left: int, height: int, width: int
) -> tuple[crops.Crops, list[list[int]]]:
    """One crop of the second of two pages, and the pieces that each of its tokens owns."""
    other = labels.LabelledPage(np.zeros((32, 96), np.uint8), np.ones((8, 24), np.uint8), page.pieces, page.spans)
    pool = crops.PagePool([other, page])
    cut = pool.cut(torch.tensor([1]), torch.tensor([top]), torch.tensor([left]), height, width)
    owned: list[list[int]] = [[] for _ in range(height * width // 32**2)]
    for token, piece in zip(cut.tokens.tolist(), cut.pieces.tolist(), strict=True):
        owned[token].append(piece)
    return cut, owned


def test_characters_and_pieces_are_labelled_where_they_stand(tokenizer: PreTrainedTokenizerFast) -> None:
    page = labels.label_page(page_of([("hash", 36, 4), ("table", 68, 36)]), tokenizer)
    cut, owned = cut_one(page, 0, 0, 64, 128)
    assert cut.gray.shape == (1, 64, 128) and cut.glyphs.shape == (1, 16, 32)
    assert [labels.GLYPHS[c - 1] for c in cut.glyphs[0, 2, 9:17:2]] == list("hash")
    names = [tokenizer.convert_ids_to_tokens(pieces) for pieces in owned]
    assert names[1] == tokenizer.tokenize("hash") and names[6] == tokenizer.tokenize("table")
    assert not any(names[place] for place in (0, 2, 3, 4, 5, 7))


def test_a_wide_piece_is_owned_by_each_token_that_it_spans(tokenizer: PreTrainedTokenizerFast) -> None:
    spans = np.array([(20, 150, 10), (96, 130, 40)], np.float32)
    page = labels.LabelledPage(
        np.full((64, 192), 255, np.uint8), np.zeros((16, 48), np.uint8), np.array([5, 7], np.int32), spans
    )
    _, owned = cut_one(page, 0, 0, 64, 192)
    assert owned[:6] == [[], [5], [5], [5], [5], []]  # 12, 32, 32, 32 and 22 of 32 pixels
    assert owned[6:] == [[], [], [], [7], [], []]  # the middle, and all of the fourth; 2 pixels of the fifth
    _, moved = cut_one(page, 0, 64, 64, 128)
    assert moved == [[5], [5], [5], [], [], [7], [], []]


def test_a_crop_beyond_the_page_is_white_and_unlabelled(tokenizer: PreTrainedTokenizerFast) -> None:
    page = labels.label_page(page_of([("hash", 36, 4)]), tokenizer)
    cut, owned = cut_one(page, 32, 64, 128, 256)
    assert (cut.gray == 255).all() and not cut.glyphs.any() and not any(owned)


def test_each_crop_is_drawn_with_its_own_labels(tokenizer: PreTrainedTokenizerFast) -> None:
    torch.manual_seed(0)
    pages = [labels.label_page(page_of([(word, 40, 68)], 160, 192), tokenizer) for word in ("hash", "table")]
    for page, ink in zip(pages, (0, 100), strict=True):
        page.image[64:96, 36:90] = ink  # each word in its own gray
    drawn = crops.PagePool(pages).draw(64, 96, 128)
    assert drawn.gray.shape == (64, 96, 128)
    [first], [second] = (tokenizer(word, add_special_tokens=False).input_ids for word in ("hash", "table"))
    for number, gray in enumerate(drawn.gray):
        owned = drawn.pieces[drawn.tokens // 12 == number].tolist()
        assert set(owned) <= {first if gray.min() == 0 else second} and gray.min() in (0, 100)


def test_what_is_degraded_is_turned_paler_and_noisy_but_stays_where_it_was() -> None:
    torch.manual_seed(0)
    gray = torch.full((8, 128, 256), 255.0)
    gray[:, 40:60, 40:200] = 0
    worn = crops.degrade(gray)
    assert worn.shape == gray.shape and worn.min() >= 0 and worn.max() <= 255
    assert (worn[:, 45:55, 60:180].mean((1, 2)) < 110).all() and (worn[:, 80:120].mean((1, 2)) > 200).all()
    assert (worn - gray).abs().mean((1, 2)).min() > 1 and not torch.allclose(worn[0], worn[1])
    even = crops._blur(torch.ones(1, 40, 40), torch.tensor([[[0.7]]]))[0, 5:-5, 5:-5]
    assert torch.allclose(even, torch.ones_like(even))


def test_glyph_targets_follow_the_order_of_the_patches() -> None:
    cells = torch.arange(16 * 16, dtype=torch.uint8).view(1, 16, 16)  # 4 x 4 patches of 4 x 4 cells
    targets = reading.glyph_targets(cells)
    assert targets.shape == (1, 16, 8)
    assert targets[0, 0].tolist() == [16, 17, 18, 19, 48, 49, 50, 51]  # second and fourth line of the first patch
    assert targets[0, 1, 0] == 20 and targets[0, 2, 0] == 16 * 5  # blocks of 2 x 2: right neighbour, then below


def test_words_under_one_token_do_not_compete() -> None:
    logits = torch.tensor([[2.0, 1.0, 0.0, -1.0]])
    weights = torch.ones(4)
    both, _ = reading.piece_loss(logits, torch.tensor([0, 0]), torch.tensor([0, 1]), weights)
    others = torch.logsumexp(torch.tensor([0.0, -1.0]), 0)
    expected = sum(torch.logaddexp(torch.tensor(s), others) - s for s in (2.0, 1.0)) / 2
    assert both.item() == pytest.approx(float(expected))


def test_words_that_share_letters_share_embedding() -> None:
    assert set(spelling_features("configure")) & set(spelling_features("configured"))
    embedding = SpelledEmbedding(["configure", "configured", "xylophon"], 64)
    near, far = (torch.cosine_similarity(*embedding(torch.tensor(pair)), dim=0) for pair in ([0, 1], [0, 2]))
    assert near > far + 0.3


def test_the_tokenizer_folds_case_but_keeps_the_identifiers(tokenizer: PreTrainedTokenizerFast) -> None:
    assert tokenizer.tokenize("Hash TABLE") == tokenizer.tokenize("hash table")
    assert len(identifier_token_ids(tokenizer, len(IDENTIFIERS)).unique()) == 20
    assert tokenizer.tokenize("[B] > [A]") == ["[", "B", "]", ">", "[", "A", "]"]


def test_set_text_stands_where_its_boxes_say() -> None:
    page = synthetic.set_page(["reading", "pages"] * 40, FONT, random.Random(3), 256, 256)
    for word, boxes in iterate_words(page):
        left, top, right, bottom = boxes[0, 0], boxes[0, 1], boxes[-1, 2], boxes[-1, 3]
        inside = page.image[int(top) : int(bottom) + 1, int(left) : int(right) + 1]
        assert inside.min() < page.image.max() - 60, word


def test_names_are_joined_from_words_as_programs_do() -> None:
    names = synthetic.join_names(["hash", "table,"] * 300, random.Random(0))
    assert set(names) == {
        name
        for plain in ("hash", "hashtable", "hash_table", "hash-table", "hash.table", "HashTable")
        for name in (plain, plain.upper())
    }
    assert synthetic.join_names(["odd"], random.Random(0)) == ["odd"]
    assert max(map(len, synthetic.join_names(["x" * 30] * 40, random.Random(0)))) == synthetic.LONGEST_WORD


def test_processes_label_what_one_would(tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    stored = tmp_path / "manual" / "00007.npz"
    stored.parent.mkdir()
    page = page_of([("hash", 8, 4), ("table", 48, 4)])
    np.savez(stored, image=page.image, codes=page.codes, boxes=page.boxes)
    texts = ["the hash table of a page", "how do I draw a bar graph"]
    drawn = list(synthetic.draw_pages(texts, [FONT], 2))
    pages = labels.label_pages([stored], drawn, tokenizer, processes=1)
    alone = [page, *(synthetic.set_page(words, font, random.Random(seed)) for words, font, seed in drawn)]
    assert load_text(stored) == "hash table "
    for got, wanted in zip(pages, (labels.label_page(one, tokenizer) for one in alone), strict=True):
        assert np.array_equal(got.image, wanted.image) and np.array_equal(got.pieces, wanted.pieces)
    assert not np.array_equal(pages[1].image, pages[2].image)


def test_a_manual_that_is_not_for_training_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="got nettle-dev"):
        build.Plan(tmp_path, 1.0, "cpu", ["pspp", "nettle-dev"])


def test_a_folder_without_a_checkpoint_is_refused_before_any_work(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="holds no checkpoint to start from"):
        build.Plan(tmp_path, 1.0, "cpu", start=tmp_path / "mistyped")
    assert not (tmp_path / "mistyped").exists()


def test_reading_learns_saves_and_resumes(tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    pages = [
        labels.label_page(synthetic.set_page(["hash", "table"] * 60, FONT, random.Random(i), 256, 256), tokenizer)
        for i in range(4)
    ]
    config = reading.ReadingConfig(minutes=0.05, crops=((1.0, 64, 128, 128),), words_from=0.0)
    torch.manual_seed(0)
    reader = export.build_reader(tokenizer)
    reading.train_reading(reader, pages, config, tmp_path)
    saved = torch.load(tmp_path / "reading.pt", weights_only=True)["progress"]
    assert saved["step"] > 0 and saved["seconds"] >= 3.0
    again = export.build_reader(tokenizer)
    reading.train_reading(again, pages, config, tmp_path)  # its time is over: it only loads
    assert torch.equal(again.tower.patch_embed.proj.weight, reader.tower.patch_embed.proj.weight)
