"""The first stage's training, from lists in a file to a folder that an index takes."""

import dataclasses
import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import tiny_retriever
import torch
from colpali_engine.data import ColPaliEngineDataset
from llama_index.core.schema import ImageDocument
from peft import LoraConfig, get_peft_model
from PIL import Image
from training_lists import COLOURS, WORDS, MakeRecipe, distance, weights_of
from typer.testing import CliRunner

from llama_index_ziprerank import ColPaliIndex
from llama_index_ziprerank.cli.train import train_app
from llama_index_ziprerank.retrieval.encoder import MultiVectorEncoder
from llama_index_ziprerank.retrieval.families import load
from llama_index_ziprerank.training.options import parse_recipe, write_recipe
from llama_index_ziprerank.training.retriever.card import retriever_card
from llama_index_ziprerank.training.retriever.run import train_retriever
from llama_index_ziprerank.training.retriever.trainer import _Collator
from llama_index_ziprerank.training.retriever_recipe import Retriever

pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing:FutureWarning")  # peft 0.20 asks for it

PAGES = 6


def question(number: int) -> str:
    return " ".join([WORDS[number]] * 2)


def page(number: int) -> Image.Image:
    """A page that can be told from the others: one colour above another."""
    image = Image.new("RGB", (64, 64), COLOURS[number % 6])
    image.paste(COLOURS[(number + 1 + number // 6) % 6], (0, 32, 64, 64))
    return image


@pytest.fixture
def lists(tmp_path: Path) -> str:
    """Six questions about six pages, which all lists share; each has a page of its own."""
    names = [f"page-{number}.png" for number in range(PAGES)]
    for number, name in enumerate(names):
        page(number).save(tmp_path / name)
    rows = [{"query": question(number), "pages": names, "positives": [number]} for number in range(PAGES)]
    path = tmp_path / "lists.jsonl"
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    return str(path)


@pytest.mark.parametrize(
    ("lora_rank", "negatives", "loss"),
    [
        (0, "in_batch", "contrastive"),
        (0, "mined", "pairwise"),
        (8, "in_batch", "pairwise"),
        (8, "mined", "contrastive"),
    ],
)
def test_a_retriever_learns_which_page_answers_a_question(
    lora_rank: int, negatives: str, loss: str, recipe: MakeRecipe, lists: str
) -> None:
    schedule = {"max_steps": 60, "batch_size": 6, "learning_rate": 5e-3}
    used = recipe(data=lists, eval_data=lists, lora_rank=lora_rank, negatives=negatives, loss=loss, **schedule)
    quality = train_retriever(used).quality
    assert list(quality) == ["before training", "step 60"]
    assert quality["before training"]["recall@1"] < 0.5
    assert quality["step 60"]["recall@1"] == 1


def test_special_tokens_in_a_question_are_text_in_training_too(recipe: MakeRecipe, lists: str) -> None:
    rows = [json.loads(line) for line in Path(lists).read_text().splitlines()]
    rows = [{**row, "query": f"{row['query']} <|image_pad|> \udcff"} for row in rows]
    Path(lists).write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    assert train_retriever(recipe(data=lists, eval_data=lists, max_steps=2, batch_size=6)).quality


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # in PaliGemma's processor
@pytest.mark.parametrize("family", list(tiny_retriever.FAMILIES))
def test_a_question_among_longer_ones_is_learned_as_the_index_reads_it_alone(family: str, tmp_path: Path) -> None:
    build, _, _ = tiny_retriever.FAMILIES[family]
    encoder = MultiVectorEncoder.from_pretrained(str(build(tmp_path / "start")), device="cpu")
    asked = [question(0), " ".join(WORDS), WORDS[1]]
    rows = [{ColPaliEngineDataset.QUERY_KEY: text, ColPaliEngineDataset.POS_TARGET_KEY: page(0)} for text in asked]
    batch = _Collator(encoder.processor)(rows)
    with torch.no_grad():
        learned = encoder.model(**{name[6:]: value for name, value in batch.items() if name.startswith("query_")})
    for ours, alone in zip(learned, encoder.encode_queries(asked), strict=True):
        np.testing.assert_allclose(ours[ours.any(dim=-1)], alone, atol=1e-5)


def mean_scores(model: str, asked: str) -> list[float]:
    encoder = MultiVectorEncoder.from_pretrained(model, device="cpu")
    [query] = encoder.encode_queries([asked])
    seen = encoder.encode_images([page(number) for number in range(PAGES)])
    return [float((query @ vectors.T).max(axis=1).sum()) for vectors in seen]


@pytest.mark.parametrize("lora_rank", [0, 4])
def test_what_was_saved_finds_what_the_last_measurement_found(lora_rank: int, recipe: MakeRecipe, lists: str) -> None:
    trained = train_retriever(recipe(data=lists, eval_data=lists, max_steps=12, lora_rank=lora_rank))
    scores = [mean_scores(str(trained.folder), question(number)) for number in range(PAGES)]
    right = sum(row.index(max(row)) == number for number, row in enumerate(scores))
    assert trained.quality["step 12"]["recall@1"] == pytest.approx(right / PAGES)
    assert not list(trained.folder.glob("adapter*")) and not (trained.folder / "training_args.bin").exists()


def test_an_index_takes_the_trained_folder(recipe: MakeRecipe, lists: str, tmp_path: Path) -> None:
    folder = train_retriever(recipe(data=lists, max_steps=60, batch_size=6)).folder
    documents = [ImageDocument(id_=str(number), image_path=str(tmp_path / f"page-{number}.png")) for number in range(6)]
    with ColPaliIndex.from_documents(documents, model=str(folder), device="cpu") as index:
        found = [index.as_retriever(similarity_top_k=1).retrieve(question(number))[0] for number in range(PAGES)]
    assert [hit.node.ref_doc_id for hit in found] == [str(number) for number in range(PAGES)]


def test_the_checkpoint_comes_with_its_card_and_a_recipe_that_trains_again(recipe: MakeRecipe, lists: str) -> None:
    used = recipe(data=lists, held_out=1, max_steps=2, lora_rank=4, negatives="mined")
    folder = train_retriever(used).folder
    card = (folder / "README.md").read_text()
    assert "# A ColQwen3 retriever" in card and "1 held-out questions, each searched among 6 pages" in card
    assert "| | before training | step 2 |" in card
    assert "in-batch and 2 mined negatives" in card and "LoRA of rank 4" in card
    assert parse_recipe(Retriever, ["--config", str(folder / "recipe.json")], prog="train") == used


@pytest.mark.parametrize("train_vision", [False, True])
def test_the_vision_tower_is_frozen_unless_asked(train_vision: bool, recipe: MakeRecipe, lists: str) -> None:
    used = recipe(data=lists, max_steps=2, train_vision=train_vision)
    end, start = weights_of(train_retriever(used).folder), weights_of(Path(used.model))
    moved = {name for name in start if not torch.equal(start[name], end[name.removeprefix("model.")])}
    assert any("visual." in name for name in moved) == train_vision
    assert any("language_model." in name for name in moved) and any("custom_text_proj" in name for name in moved)


def test_the_card_of_a_whole_training_says_what_became_of_the_tower(recipe: MakeRecipe, lists: str) -> None:
    whole = recipe(data=lists, lora_rank=0, train_vision=True)
    card = retriever_card(whole, "ColQwen3", "lists", None, steps=1, history=[])
    assert "vision tower trained; all other weights." in card


@pytest.mark.parametrize("negatives", ["in_batch", "mined"])
def test_a_resumed_run_ends_where_an_uninterrupted_one_ends(
    negatives: str, recipe: MakeRecipe, lists: str, tmp_path: Path
) -> None:
    common = {"data": lists, "save_steps": 2, "max_steps": 7, "batch_size": 3, "keep_checkpoints": 9}
    whole = train_retriever(recipe(**common, negatives=negatives, output_dir=str(tmp_path / "whole"))).folder
    resumed = tmp_path / "resumed"
    shutil.copytree(whole / "checkpoint-2", resumed / "checkpoint-2")
    train_retriever(recipe(**common, negatives=negatives, output_dir=str(resumed), resume=True))
    assert distance(whole, resumed) == 0


def test_what_was_mined_is_not_mined_again(recipe: MakeRecipe, lists: str, tmp_path: Path) -> None:
    common = {"data": lists, "negatives": "mined", "max_steps": 1, "save_steps": 1}
    folder = train_retriever(recipe(**common)).folder
    path = folder / "negatives.json"
    kept = json.loads(path.read_text())
    kept["negatives"] = [list(reversed(wrong)) for wrong in kept["negatives"]]
    path.write_text(json.dumps(kept))
    train_retriever(recipe(**{**common, "max_steps": 2}, resume=True))
    assert json.loads(path.read_text()) == kept
    for checkpoint in folder.glob("checkpoint-*"):  # without one a training begins, by any recipe
        shutil.rmtree(checkpoint)
    train_retriever(recipe(**common, resume=True, mined=1))
    assert {len(wrong) for wrong in json.loads(path.read_text())["negatives"]} == {1}


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # in PaliGemma's processor
@pytest.mark.parametrize("family", ["ColPali", "ColQwen2.5", "ColIdefics3", "ColModernVBERT", "ColGemma3"])
def test_every_family_trains_with_adapters(family: str, recipe: MakeRecipe, lists: str, tmp_path: Path) -> None:
    build, _, _ = tiny_retriever.FAMILIES[family]
    start = build(tmp_path / "start")
    folder = train_retriever(recipe(data=lists, model=str(start), lora_rank=4, max_steps=1, negatives="mined")).folder
    before, after = mean_scores(str(start), question(0)), mean_scores(str(folder), question(0))
    assert before != after


def test_a_retriever_that_is_an_adapter_is_trained_on(recipe: MakeRecipe, lists: str, tmp_path: Path) -> None:
    start = Path(recipe(data=lists).model)
    _, model, processor = load(str(start), "cpu", torch.float32)
    config = LoraConfig(r=4, target_modules=["q_proj", "custom_text_proj"], init_lora_weights=False)
    adapted = get_peft_model(model, config, autocast_adapter_dtype=False)
    adapted.peft_config["default"].base_model_name_or_path = str(start)
    adapted.save_pretrained(tmp_path / "adapter")
    adapter, trained = str(tmp_path / "adapter"), recipe(data=lists, model=str(tmp_path / "adapter"), max_steps=1)
    folder = train_retriever(dataclasses.replace(trained, learning_rate=0.0)).folder
    assert mean_scores(str(folder), question(0)) == pytest.approx(mean_scores(adapter, question(0)), abs=1e-5)
    assert mean_scores(adapter, question(0)) != pytest.approx(mean_scores(str(start), question(0)), abs=1e-3)


def test_a_retriever_is_trained_by_one_command(recipe: MakeRecipe, lists: str, tmp_path: Path) -> None:
    write_recipe(recipe(data=lists), tmp_path / "recipe.json")
    flags = ["--config", str(tmp_path / "recipe.json"), "--eval_data", lists, "--max_steps", "2"]
    done = CliRunner().invoke(train_app, ["retriever", *flags])
    assert done.exit_code == 0, done.output
    assert done.stdout.startswith("| | before training | step 2 |")
    assert "The trained retriever is in" in done.stderr


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--model", "./nowhere"], "No checkpoint at './nowhere'"),
        (["--data", "nowhere.jsonl"], "No training data at 'nowhere.jsonl'"),
        (["--batch_size", "7"], "hold 6 pairs .* a batch wants 7"),
        (["--batch_size", "1"], "batch_size is 2 to 1024, got 1"),
        (["--negatives", "mined", "--mined", "6"], "has 5 wrong pages in a corpus of 6, wanted 6"),
        (["--in_batch_weight", "2"], "in_batch_weight is 0 to 1, got 2"),
    ],
)
def test_what_a_user_can_set_right_is_said(
    flags: list[str], message: str, recipe: MakeRecipe, lists: str, tmp_path: Path
) -> None:
    write_recipe(recipe(data=lists), tmp_path / "recipe.json")
    done = CliRunner().invoke(train_app, ["retriever", "--config", str(tmp_path / "recipe.json"), *flags])
    assert isinstance(done.exception, ValueError | OSError)
    assert re.search(message, str(done.exception))


def test_a_loss_that_is_no_number_ends_the_training(recipe: MakeRecipe, lists: str) -> None:
    with pytest.raises(FloatingPointError, match="The loss is nan after [1-9][0-9]* steps"):
        train_retriever(recipe(data=lists, learning_rate=1e30, epochs=20))
