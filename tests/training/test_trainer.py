import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.overrides import TorchFunctionMode
from training_lists import MakeRecipe, colour_lists, distance, weights_of, write_lists

from llama_index_ziprerank.reranking import ListwiseReranker
from llama_index_ziprerank.reranking.loading import load_processor
from llama_index_ziprerank.training.collator import RankingCollator
from llama_index_ziprerank.training.losses import STAGE2
from llama_index_ziprerank.training.recipes import Stage1, Stage2
from llama_index_ziprerank.training.run import train
from llama_index_ziprerank.training.samples import RankingSample
from llama_index_ziprerank.training.saving import save_finished
from llama_index_ziprerank.training.setup import training_arguments, training_model
from llama_index_ziprerank.training.sources import page_image
from llama_index_ziprerank.training.trainer import RerankTrainer, qwen

pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing:FutureWarning")  # peft 0.20 asks for it

SGD = json.dumps({"optim": "sgd", "use_cpu": True})  # a step is then proportional to the gradient


class CountPatches(TorchFunctionMode):
    """Counts the patches that the vision tower embeds, by the shape of its patch embedding's product."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.nn.functional.linear and args[0].shape[-1] == 3 * 16 * 16:
            self.patches += len(args[0])
        return func(*args, **(kwargs or {}))


def unlike_lists() -> list[RankingSample]:
    """Lists of two to five candidates: batches of them are padded, and their answers are of different lengths."""
    return [
        RankingSample(sample.query, sample.pages[:n], [i for i in sample.order if i < n])
        for n, sample in zip((2, 5, 3, 4, 5, 2, 4, 3), colour_lists(8, 5), strict=True)
    ]


@pytest.mark.parametrize(
    "fields",
    [
        {"batch_size": 1, "gradient_accumulation": 4},
        {"batch_size": 4, "padding_side": "left"},
        {"batch_size": 4, "gradient_checkpointing": True},
        {"batch_size": 4, "feature_cache_gb": 0.0},
        {"batch_size": 4, "workers": 1},
    ],
    ids=str,
)
def test_how_a_batch_is_computed_changes_nothing(fields: dict, recipe: MakeRecipe, tmp_path: Path) -> None:
    common = {"data": write_lists(tmp_path, unlike_lists()), "epochs": 2, "learning_rate": 0.05, "trainer": SGD}
    whole = train(recipe(**common, output_dir=str(tmp_path / "whole"))).folder
    parts = train(recipe(**{**common, **fields}, output_dir=str(tmp_path / "parts"))).folder
    start = Path(recipe(**common).model)
    assert distance(whole, start) > 1e-3
    assert distance(whole, parts) < 5e-6  # float32 rounds sums of other lengths otherwise


def test_pruned_batches_train_as_single_lists_do(recipe: MakeRecipe, tmp_path: Path) -> None:
    lists = [
        RankingSample(sample.query, [page_image(page, 32).resize((64, 64)) for page in sample.pages], sample.order)
        for sample in unlike_lists()
    ]
    common = {"data": write_lists(tmp_path, lists), "keep_ratio": 0.5, "learning_rate": 0.05, "trainer": SGD}
    whole = train(recipe(**common, output_dir=str(tmp_path / "whole"))).folder
    single = {"batch_size": 1, "gradient_accumulation": 4, "output_dir": str(tmp_path / "single")}
    assert distance(whole, train(recipe(**common, **single)).folder) < 1e-6
    full = {**common, "keep_ratio": 1.0, "output_dir": str(tmp_path / "full")}
    assert distance(whole, train(recipe(**full)).folder) > 1e-6


def test_lists_left_over_in_an_epoch_weigh_what_the_others_weigh(recipe: MakeRecipe, tmp_path: Path) -> None:
    """Five lists in micro-batches of 2, 2 and 1 are one step of five lists."""
    common = {"data": write_lists(tmp_path, unlike_lists()[:5]), "learning_rate": 0.05, "trainer": SGD}
    whole = train(recipe(**common, batch_size=5, output_dir=str(tmp_path / "whole"))).folder
    parts = {"batch_size": 2, "gradient_accumulation": 3, "output_dir": str(tmp_path / "parts")}
    assert distance(whole, train(recipe(**common, **parts)).folder) < 1e-6


@pytest.mark.parametrize("lora_rank", [0, 4])
def test_the_vision_tower_is_frozen_unless_asked(lora_rank: int, recipe: MakeRecipe, tmp_path: Path) -> None:
    common = {"data": write_lists(tmp_path, colour_lists(4)), "max_steps": 2, "lora_rank": lora_rank}
    start = weights_of(Path(recipe(**common).model))
    for trained in (False, True):
        fields = {**common, "train_vision": trained, "output_dir": str(tmp_path / str(trained))}
        end = weights_of(train(recipe(**fields)).folder)
        moved = {name for name in start if not torch.equal(start[name], end[name])}
        assert any(".visual." in name for name in moved) == trained
        assert any(".language_model." in name for name in moved)


def test_a_frozen_tower_sees_every_page_once_over_all_epochs(recipe: MakeRecipe, tmp_path: Path) -> None:
    seen: dict[float, int] = {}
    for limit in (4.0, 0.0):
        with CountPatches() as counter:
            data = write_lists(tmp_path, colour_lists(4))
            train(recipe(data=data, epochs=3, feature_cache_gb=limit, output_dir=str(tmp_path / str(limit))))
        seen[limit] = counter.patches
    assert seen[4.0] == 16 * 4  # sixteen page files of one visual token, which the tower reads as four patches
    assert seen[0.0] == 3 * seen[4.0]


def test_8_bit_states_train_too(recipe: MakeRecipe, tmp_path: Path) -> None:
    pytest.importorskip("bitsandbytes")
    start = recipe(data=write_lists(tmp_path, colour_lists(4)), optimizer="adamw_8bit", max_steps=2)
    assert distance(train(start).folder, Path(start.model)) > 1e-4


@pytest.mark.parametrize("lora_rank", [0, 8])
@pytest.mark.parametrize("stage", [Stage1, Stage2])
def test_training_lowers_the_loss(stage: type, lora_rank: int, recipe: MakeRecipe, tmp_path: Path) -> None:
    data = write_lists(tmp_path, colour_lists(4))
    lora = {"lora_rank": lora_rank, "lora_alpha": 4 * lora_rank}
    trained = train(recipe(stage, data=data, max_steps=12, save_steps=12, learning_rate=5e-3, **lora))
    state = json.loads((trained.folder / "checkpoint-12" / "trainer_state.json").read_text())
    losses = [entry["loss"] for entry in state["log_history"] if "loss" in entry]
    assert losses[-1] < 0.7 * losses[0]
    assert {"language_model_loss", "ranking_loss"} <= set(state["log_history"][0])


@pytest.mark.parametrize("lora_rank", [0, 4])
def test_the_saved_checkpoint_scores_as_the_last_measurement_did(
    lora_rank: int, recipe: MakeRecipe, tmp_path: Path
) -> None:
    lists = colour_lists(6)
    data = write_lists(tmp_path, lists)
    trained = train(recipe(data=data, eval_data=data, lora_rank=lora_rank, max_steps=3, keep_ratio=0.9))
    reranker = ListwiseReranker.from_pretrained(str(trained.folder), device="cpu")
    orders = [reranker.rerank(each.query, [page_image(p, 32) for p in each.pages], keep_ratio=0.9) for each in lists]
    found = sum(ranking.order[0] in each.positives for ranking, each in zip(orders, lists, strict=True))
    assert trained.quality["step 3"]["recall@1"] == pytest.approx(found / len(lists))
    assert not list(trained.folder.glob("adapter*")) and not (trained.folder / "training_args.bin").exists()


@pytest.mark.parametrize(("lora_rank", "rounding"), [(0, 0.0), (4, 1e-5)])
def test_saving_and_loading_changes_no_score(
    lora_rank: int, rounding: float, recipe: MakeRecipe, tmp_path: Path
) -> None:
    used = recipe(
        data=write_lists(tmp_path, colour_lists(4)),
        lora_rank=lora_rank,
        lora_dropout=0.0,
        keep_ratio=0.5,
        pruning="query",
    )
    model, processor = training_model(used), load_processor(used.model)
    own = {"first_stage_weight": 0.5, "needs_float32": True}
    qwen(model).config.update(own)
    processor.image_processor.page_side = 512
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter), alpha=0.05)
    [sample] = colour_lists(1)
    pages = [page_image(page, 32) for page in sample.pages]
    before = ListwiseReranker(qwen(model), processor, "before").rerank(sample.query, pages).logits
    arguments = training_arguments(used, evaluates=False, resumes=False)
    trainer = RerankTrainer(model, arguments, RankingCollator(processor), STAGE2)
    folder = save_finished(trainer, torch.float32)
    own |= {"keep_ratio": 0.5, "pruning": "query"}
    assert own.items() <= json.loads((folder / "config.json").read_text()).items()
    finished = ListwiseReranker.from_pretrained(str(folder), device="cpu")
    assert finished.sides == (512,)
    after = finished.rerank(sample.query, pages).logits
    assert after == pytest.approx(before, abs=rounding)
    start = ListwiseReranker.from_pretrained(used.model, device="cpu").rerank(sample.query, pages).logits
    assert after != pytest.approx(start, abs=1e-3)


def test_the_first_figures_are_those_of_the_given_order_and_of_the_untrained_model(
    recipe: MakeRecipe, reranker: ListwiseReranker, tmp_path: Path
) -> None:
    lists = colour_lists(6)
    data = write_lists(tmp_path, lists)
    quality = train(recipe(data=data, eval_data=data, max_steps=2)).quality
    orders = [reranker.rerank(each.query, [page_image(p, 32) for p in each.pages]).order for each in lists]
    untrained = sum(order[0] in each.positives for order, each in zip(orders, lists, strict=True)) / len(lists)
    given = sum(0 in each.positives for each in lists) / len(lists)
    assert list(quality) == ["first stage", "before training", "step 2"]
    assert quality["first stage"]["recall@1"] == pytest.approx(given)
    assert quality["before training"]["recall@1"] == pytest.approx(untrained)


def test_a_loss_that_is_no_number_ends_the_training(recipe: MakeRecipe, tmp_path: Path) -> None:
    with pytest.raises(FloatingPointError, match="The loss is nan after [1-9][0-9]* steps"):
        train(recipe(data=write_lists(tmp_path, colour_lists(4)), learning_rate=1e30, max_grad_norm=0.0, epochs=20))
