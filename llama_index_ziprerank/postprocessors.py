"""`ZipRerankPostprocessor`: page nodes in, new nodes in ZipRerank's order out."""

import asyncio
import contextvars
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from llama_index.core.bridge.pydantic import Field, PrivateAttr, model_validator
from llama_index.core.callbacks import CBEventType, EventPayload
from llama_index.core.instrumentation import get_dispatcher
from llama_index.core.instrumentation.events.rerank import ReRankEndEvent, ReRankStartEvent
from llama_index.core.postprocessor.types import BaseNodePostprocessor
from llama_index.core.schema import NodeWithScore, QueryBundle
from typing_extensions import Self

from llama_index_ziprerank.nodes import (
    FIRST_STAGE_RANK,
    FIRST_STAGE_SCORE,
    LOGIT,
    WINDOW,
    page_image_or_rendered_text,
    with_scores,
)
from llama_index_ziprerank.reranking import ListwiseReranker, PruningMode, Ranking
from llama_index_ziprerank.reranking.windows import check_window

dispatcher = get_dispatcher(__name__)


class _ModelSeat:
    """Where a postprocessor keeps its model: taken on first use, shared by copies, left behind by pickle."""

    def __init__(self, reranker: ListwiseReranker | None = None) -> None:
        self._reranker = reranker
        self._loading = threading.Lock()
        self.thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="ziprerank")

    def reranker(self, load: Callable[[], ListwiseReranker]) -> ListwiseReranker:
        """Return the model, calling ``load`` when there is none yet."""
        with self._loading:
            if self._reranker is None:
                self._reranker = load()
            return self._reranker

    def __deepcopy__(self, memo: dict[int, Any]) -> "_ModelSeat":
        return self

    def __reduce__(self) -> tuple[type["_ModelSeat"], tuple[()]]:
        return type(self), ()


class ZipRerankPostprocessor(BaseNodePostprocessor):
    """Reorders retrieved pages by one forward pass of a ZipRerank model over all of them.

    Takes page images in any node that holds one; a node with text only is drawn as an image, as in the model's
    training. Returns new nodes: the score is the softmax over the pages of one forward pass, so a threshold means
    something, and the metadata gains ``ziprerank_logit``, ``ziprerank_window``, ``first_stage_score`` and
    ``first_stage_rank`` (from 1), hidden from LLMs and embedding models.

    The model is loaded on first use, from safetensors; code from the Hub is never run. Calls take turns at it, and
    asynchronous ones wait for theirs in a thread of this object's own.
    """

    model: str = Field(
        default="mtri-admin/ZipRerank",
        description='Reranker: "nano" (ships with the package), a folder, or a name on the Hugging Face Hub.',
    )
    top_n: int = Field(default=5, ge=1, description="Number of nodes to return, best first.")
    keep_ratio: float = Field(
        default=1.0, gt=0, le=1, description="Part of each page's visual tokens that the language model reads."
    )
    pruning: PruningMode = Field(
        default="prompt",
        description='What visual tokens are compared with when some are dropped: the whole "prompt" or the "query".',
    )
    device: str | None = Field(default=None, description="Default: cuda, else mps, else cpu.")
    dtype: str | None = Field(
        default=None, description='Such as "bfloat16". Default: the checkpoint\'s own; float32 on a CPU.'
    )
    window: int = Field(default=20, description="Pages in one forward pass, 2 to 20.")
    stride: int = Field(default=10, description="Pages by which the window moves along a longer list, below `window`.")
    attn_implementation: str | None = Field(
        default=None, description='Attention of transformers, such as "sdpa" or "flash_attention_2".'
    )

    _seat: _ModelSeat = PrivateAttr(default_factory=_ModelSeat)

    @model_validator(mode="after")
    def _check_window(self) -> Self:
        check_window(self.window, self.stride)
        return self

    @classmethod
    def class_name(cls) -> str:
        """Name under which LlamaIndex serialises this class."""
        return "ZipRerankPostprocessor"

    @classmethod
    def from_reranker(cls, reranker: ListwiseReranker, **fields: Any) -> Self:
        """Use a model that is already loaded, which several postprocessors may share.

        ``fields`` are those of the class. Pickled or serialised, the copy loads the model by the reranker's name.
        """
        postprocessor = cls(model=reranker.name, **fields)
        postprocessor._seat = _ModelSeat(reranker)
        return postprocessor

    def _postprocess_nodes(
        self, nodes: list[NodeWithScore], query_bundle: QueryBundle | None = None
    ) -> list[NodeWithScore]:
        if not nodes:
            return []
        if query_bundle is None or not query_bundle.query_str.strip():
            raise ValueError(
                "ZipRerank ranks nodes by a query, got none. Pass `query_bundle` or `query_str` to `postprocess_nodes`."
            )
        dispatcher.event(ReRankStartEvent(query=query_bundle, nodes=nodes, top_n=self.top_n, model_name=self.model))
        payload: dict[str, Any] = {
            EventPayload.NODES: nodes,
            EventPayload.MODEL_NAME: self.model,
            EventPayload.QUERY_STR: query_bundle.query_str,
            EventPayload.TOP_K: self.top_n,
        }
        with self.callback_manager.event(CBEventType.RERANKING, payload=payload) as event:
            images = [page_image_or_rendered_text(node.node) for node in nodes]
            ranking = self._seat.reranker(self._load).rerank(
                query_bundle.query_str.strip(), images, self.keep_ratio, self.pruning, self.window, self.stride
            )
            reranked = [_reranked(nodes, ranking, i) for i in ranking.order[: self.top_n]]
            event.on_end(payload={EventPayload.NODES: reranked})
        dispatcher.event(ReRankEndEvent(nodes=reranked))
        return reranked

    async def _apostprocess_nodes(
        self, nodes: list[NodeWithScore], query_bundle: QueryBundle | None = None
    ) -> list[NodeWithScore]:
        """Rerank in this object's thread: waiting calls block neither the loop nor its default thread pool."""
        context = contextvars.copy_context()  # carries the tracing span along
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._seat.thread, context.run, self._postprocess_nodes, nodes, query_bundle)

    def _load(self) -> ListwiseReranker:
        return ListwiseReranker.from_pretrained(self.model, self.device, self.dtype, self.attn_implementation)


def _reranked(nodes: list[NodeWithScore], ranking: Ranking, i: int) -> NodeWithScore:
    values = {
        LOGIT: ranking.logits[i],
        WINDOW: ranking.window_of[i],
        FIRST_STAGE_SCORE: nodes[i].score,
        FIRST_STAGE_RANK: i + 1,
    }
    return with_scores(nodes[i].node, ranking.scores[i], values)
