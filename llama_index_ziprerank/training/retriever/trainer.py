"""`RetrieverTrainer`: the contrastive trainer of colpali-engine, with our checkpoints, batches and measurement."""

from collections.abc import Sequence
from typing import Any

import torch
from colpali_engine.collators.visual_retriever_collator import VisualRetrieverCollator, prefix_keys
from colpali_engine.data import ColPaliEngineDataset
from colpali_engine.models import ColPaliProcessor
from colpali_engine.trainer.contrastive_trainer import ContrastiveTrainer
from torch import nn
from torch.utils.data import Sampler
from transformers import TrainerControl, TrainingArguments

from llama_index_ziprerank.retrieval.encoder import plain_question
from llama_index_ziprerank.training.metrics import measure_order
from llama_index_ziprerank.training.retriever.model import TrainedRetriever
from llama_index_ziprerank.training.retriever.pairs import ApartSampler, Corpus, Pairs
from llama_index_ziprerank.training.retriever.search import search
from llama_index_ziprerank.training.saving import SavingTrainer

_DEEPEST = 5  # places that the metrics look at


class _Collator(VisualRetrieverCollator):
    """colpali-engine's collator, whose questions are read as the index reads them.

    Without the labels that PaliGemma's processor adds: its model would compute a loss.
    """

    def __call__(self, examples: list[dict[str, Any]]) -> dict[str, Any]:
        key, tokenizer = ColPaliEngineDataset.QUERY_KEY, self.processor.tokenizer
        asked = [plain_question(row[key], tokenizer) for row in examples]
        collated = super().__call__([{**row, key: text} for row, text in zip(examples, asked, strict=True)])
        pages = {name: value for name, value in collated.items() if not name.startswith(self.query_prefix)}
        return {**pages, **prefix_keys(self._questions(asked), self.query_prefix)}

    def _questions(self, asked: list[str]) -> dict[str, torch.Tensor]:
        """Let the processor word the questions: ColGemma3's appends no augmentation tokens, the collator always does.

        PaliGemma's text attends both ways, in transformers 5.23 beside padding only where it is said to be a prefix.
        """
        read = dict(self.processor.process_queries(asked))
        if isinstance(self.processor, ColPaliProcessor):
            read["token_type_ids"] = torch.zeros_like(read["input_ids"])
        return read

    def auto_collate(self, batch: Sequence[Any], key_prefix: str = "") -> dict[str, Any]:
        collated = super().auto_collate(list(batch), key_prefix)
        return {key: value for key, value in collated.items() if key != f"{key_prefix}labels"}


class RetrieverTrainer(SavingTrainer, ContrastiveTrainer):
    """Trains a retriever on pairs; in-batch negatives are gathered over processes by colpali-engine.

    Args:
        retriever: what is trained.
        args: transformers' TrainingArguments; `setup.training_arguments` writes them.
        loss: a loss of colpali-engine.
        pairs: what is learned.
        measured: questions to measure on, and the pages they are to be found among.
    """

    control: TrainerControl

    def __init__(
        self,
        retriever: TrainedRetriever,
        args: TrainingArguments,
        loss: nn.Module,
        pairs: Pairs,
        measured: Corpus | None = None,
    ) -> None:
        super().__init__(
            loss,
            True,
            model=retriever.model,
            args=args,
            data_collator=_Collator(retriever.processor),
            train_dataset=pairs,
            eval_dataset=None if measured is None else Pairs(measured),
            processing_class=retriever.processor,
        )
        self.retriever, self.measured = retriever, measured
        self._apart = ApartSampler(pairs, args.train_batch_size * args.world_size, args.seed)

    def _get_train_sampler(self, dataset: Any = None) -> Sampler[int]:
        return self._apart

    def compute_loss(
        self, model: nn.Module, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """Return colpali-engine's loss; FloatingPointError when it is no number any more."""
        computed = super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        loss = computed[0] if return_outputs else computed
        if not loss.isfinite():
            raise FloatingPointError(
                f"The loss is {loss.item()} after {self.state.global_step} steps. Lower the learning rate, or resume "
                "from the last checkpoint with float32; checkpoints are untouched."
            )
        return computed

    @torch.no_grad()
    def evaluate(
        self, eval_dataset: Any = None, ignore_keys: list[str] | None = None, metric_key_prefix: str = "eval"
    ) -> dict[str, float]:
        """Search the pages of the held-out lists for each of their questions; return the metrics' means."""
        if self.measured is None:
            raise ValueError("There is nothing to evaluate on. Pass measured.")
        was_training = self.model.training
        self.model.eval()
        with self.accelerator.autocast():
            found = search(self.retriever.encoder(), self.measured, _DEEPEST)
        self.model.train(was_training)
        values = [
            measure_order(hits.pages, question.relevant)
            for hits, question in zip(found, self.measured.questions, strict=True)
        ]
        metrics = {
            f"{metric_key_prefix}_{name}": sum(value[name] for value in values) / len(values) for name in values[0]
        }
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics
