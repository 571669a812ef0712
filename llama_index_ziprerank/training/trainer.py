"""`RerankTrainer`: transformers' Trainer for training rows.

Accelerate, DDP, mixed precision, gradient checkpointing, logging and resuming come from the Trainer. What is ours: the
forward and the loss of a list (every list of an effective batch weighs the same, however it is cut into micro-batches
and processes), features that are computed once, and an evaluation that reranks held-out lists.
"""

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor, nn
from torch.utils.data import Dataset
from transformers import Qwen3VLForConditionalGeneration, TrainerCallback, TrainerControl, TrainingArguments

from llama_index_ziprerank.reranking.features import PageFeatures, differentiable_page_features, page_features
from llama_index_ziprerank.reranking.inputs import PagePatches
from llama_index_ziprerank.reranking.pruning import PruningMode, check_pruning, window_inputs
from llama_index_ziprerank.reranking.scoring import identifier_logits
from llama_index_ziprerank.training.cache import moved
from llama_index_ziprerank.training.collator import RankingCollator, TrainingRow, TrainingRows
from llama_index_ziprerank.training.forward import PaddingSide, row_outputs, training_window
from llama_index_ziprerank.training.losses import Objective
from llama_index_ziprerank.training.metrics import METRICS, measure_order
from llama_index_ziprerank.training.samples import RankingSample
from llama_index_ziprerank.training.saving import SavingTrainer


class RerankTrainer(SavingTrainer):
    """Trains a Qwen3-VL to rank lists of pages.

    Args:
        model: a Qwen3-VL, or a PEFT model around one. Parameters that are not to be trained are frozen already.
        args: transformers' TrainingArguments; `setup.training_arguments` writes them.
        collator: makes rows of samples; its cache holds the features of pages while the vision tower is frozen.
        objective: the loss of one list.
        train_dataset: lists to learn from.
        eval_dataset: lists to measure on.
        keep_ratio: part of the visual tokens that the model reads, as at inference.
        pruning: what the others are compared with when they are dropped.
        padding_side: where shorter rows of a batch are padded.
    """

    control: TrainerControl

    def __init__(
        self,
        model: nn.Module,
        args: TrainingArguments,
        collator: RankingCollator,
        objective: Objective,
        *,
        train_dataset: Dataset[RankingSample] | None = None,
        eval_dataset: Dataset[RankingSample] | None = None,
        keep_ratio: float = 1.0,
        pruning: PruningMode = "prompt",
        padding_side: PaddingSide = "right",
    ) -> None:
        check_pruning(keep_ratio, pruning)
        super().__init__(
            model=model,
            args=args,
            data_collator=collator,
            train_dataset=train_dataset,
            eval_dataset=eval_dataset,
            processing_class=collator.processor,
            callbacks=[_TellEpoch(collator)],
        )
        self.collator, self.objective, self.padding_side = collator, objective, padding_side
        self.keep_ratio, self.pruning = keep_ratio, pruning
        self.trains_vision = any(parameter.requires_grad for parameter in qwen(model).model.visual.parameters())
        self.loss_is_scaled_for_ga = True  # see compute_loss
        self._parts: dict[str, list[float]] = defaultdict(list)

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, TrainingRows],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """Return the sum of the rows' losses over the number of rows of the whole effective batch."""
        rows = inputs["rows"]
        with self.accelerator.autocast():
            plain = qwen(self.accelerator.unwrap_model(model))
            windows = [
                training_window(plain, row, features, keep_ratio=self.keep_ratio, pruning=self.pruning)
                for row, features in zip(rows, self._features(plain, rows), strict=True)
            ]
        outputs = row_outputs(model, windows, padding_side=self.padding_side)
        losses = [
            self.objective(output.logits, row.target_ids, output.scores, row.order, row.positives)
            for row, output in zip(rows, outputs, strict=True)
        ]
        self._parts["language_model_loss"] += [loss.language_model.item() for loss in losses]
        self._parts["ranking_loss"] += [loss.ranking.item() for loss in losses]
        total = torch.stack([loss.total for loss in losses]).sum()
        if not total.isfinite():
            raise FloatingPointError(
                f"The loss is {total.item()} after {self.state.global_step} steps. Lower the learning rate, or resume "
                "from the last checkpoint with float32; checkpoints are untouched."
            )
        if num_items_in_batch is None:
            loss = total / len(rows)
        else:  # gradients are averaged over processes: undo that, for each has seen only its part of the batch
            loss = total * self.accelerator.num_processes / num_items_in_batch
        return (loss, outputs) if return_outputs else loss

    def _get_num_items_in_batch(self, batch_samples: list, device: torch.device) -> Tensor:
        """Count the rows of the effective batch, over micro-batches and processes."""
        count = torch.tensor(sum(len(batch["rows"]) for batch in batch_samples), device=device)
        return self.accelerator.gather(count).sum()

    def _features(
        self, model: Qwen3VLForConditionalGeneration, rows: Sequence[TrainingRow]
    ) -> list[list[PageFeatures]]:
        """Look up the rows' pages, each different page once; the tower sees those that no one remembers."""
        cache = self.collator.cache
        pages = {page.key: page.content for row in rows for page in row.pages}
        known = {
            key: content if isinstance(content, PageFeatures) else None if self.trains_vision else cache.get(key)
            for key, content in pages.items()
        }
        fresh = {key: page for key, page in pages.items() if known[key] is None and isinstance(page, PagePatches)}
        look = differentiable_page_features if self.trains_vision else page_features
        for key, features in zip(fresh, look(model, fresh.values()), strict=True):
            known[key] = features
            if not self.trains_vision:
                cache.put(key, features)
        ready = {key: moved(features, model.device) for key, features in known.items() if features is not None}
        return [[ready[page.key] for page in row.pages] for row in rows]

    @torch.no_grad()
    def evaluate(
        self,
        eval_dataset: Dataset[RankingSample] | None = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> dict[str, float]:
        """Rerank the held-out lists; return each metric of the given order (``base_``) and of the reranked one.

        Where a list names no positives, the teacher's favourite counts as relevant.
        """
        samples: Any = self.eval_dataset if eval_dataset is None else eval_dataset
        if samples is None:
            raise ValueError("There is nothing to evaluate on. Pass eval_dataset.")
        was_training = self.model.training
        model = qwen(self.accelerator.unwrap_model(self.model_wrapped)).eval()
        process, processes = self.accelerator.process_index, self.accelerator.num_processes
        sums = torch.zeros(2, len(METRICS), dtype=torch.float64)
        for number in range(process, len(samples), processes):
            sums += self._measure(model, samples[number])
        self.model.train(was_training)
        sums = self.accelerator.reduce(sums.to(self.args.device, torch.float32), "sum").cpu() / len(samples)
        metrics = {
            f"{metric_key_prefix}_{prefix}{metric}": value
            for prefix, row in zip(("base_", ""), sums.tolist(), strict=True)
            for metric, value in zip(METRICS, row, strict=True)
        }
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def _measure(self, model: Qwen3VLForConditionalGeneration, sample: RankingSample) -> Tensor:
        """Return the metrics of the given order and of the reranked one, (2, metrics)."""
        row = self.collator.row(sample)
        with self.accelerator.autocast():
            [features] = self._features(model, [row])
            window = window_inputs(model, row.prompt, features, keep_ratio=self.keep_ratio, pruning=self.pruning)
            [logits] = identifier_logits(model, [window])
        orders = list(range(len(sample.pages))), logits.argsort(descending=True, stable=True).tolist()
        relevant = sample.positives or {sample.order[0]}
        return torch.tensor([list(measure_order(order, relevant).values()) for order in orders], dtype=torch.float64)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Log the two parts of the loss beside it (means over this process's rows)."""
        if "loss" in logs and self._parts:
            logs |= {name: sum(values) / len(values) for name, values in self._parts.items()}
            self._parts.clear()
        super().log(logs, start_time)

    def floating_point_ops(self, inputs: dict[str, Any]) -> int:
        """Return 0: the Trainer's estimate knows no rows, and pruning would make it wrong."""
        return 0


class _TellEpoch(TrainerCallback):
    """Lets the collator draw new orders in every epoch, before workers are started."""

    def __init__(self, collator: RankingCollator) -> None:
        self.collator = collator

    def on_epoch_begin(self, args: TrainingArguments, state: Any, control: Any, **kwargs: Any) -> None:
        self.collator.epoch = int(state.epoch or 0)


def qwen(model: nn.Module) -> Qwen3VLForConditionalGeneration:
    """Return the Qwen3-VL inside a PEFT model, or the model itself."""
    return model.get_base_model() if isinstance(model, PeftModel) else model
