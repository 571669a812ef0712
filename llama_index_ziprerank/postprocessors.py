"""`ZipRerankPostprocessor`: page nodes in, new nodes in ZipRerank's order out."""

import asyncio
import contextvars
import dataclasses
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import CancelledError, ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any
from warnings import warn

from llama_index.core.bridge.pydantic import BeforeValidator, ConfigDict, Field, PrivateAttr, model_validator
from llama_index.core.callbacks import CBEventType, EventPayload
from llama_index.core.instrumentation import get_dispatcher
from llama_index.core.instrumentation.events.rerank import ReRankEndEvent, ReRankStartEvent
from llama_index.core.postprocessor.types import BaseNodePostprocessor
from llama_index.core.schema import BaseNode, NodeWithScore, QueryBundle
from typing_extensions import Self

from llama_index_ziprerank.nodes import (
    FIRST_STAGE_RANK,
    FIRST_STAGE_SCORE,
    LOGIT,
    WINDOW,
    decode_node_image,
    node_image_file,
    node_title,
    page_image_or_rendered_text,
    with_scores,
)
from llama_index_ziprerank.pages.remote import RemoteImages
from llama_index_ziprerank.reranking import ListwiseReranker, PruningMode, Ranking
from llama_index_ziprerank.reranking.explanation import Candidate, Explanation, explain
from llama_index_ziprerank.reranking.feature_cache import MEMORY_BYTES, DiskCost, FeatureCache
from llama_index_ziprerank.reranking.inputs import check_sides
from llama_index_ziprerank.reranking.options import RankingOptions
from llama_index_ziprerank.reranking.page_keys import PageFile, PageSource
from llama_index_ziprerank.reranking.quantization import Quantization
from llama_index_ziprerank.reranking.stored_features import StoredType
from llama_index_ziprerank.reranking.windows import Strategy, check_window
from llama_index_ziprerank.reranking.windows.permutations import MOST_PERMUTATIONS

if TYPE_CHECKING:
    from llama_index_ziprerank.retrieval.similarity import HasEncoder

dispatcher = get_dispatcher(__name__)

_cancelled: contextvars.ContextVar[threading.Event | None] = contextvars.ContextVar("cancelled", default=None)
"""Set when the asynchronous call of this context is given up."""


CONCURRENT_CALLS = 16
"""Asynchronous calls that hold their pages in memory and run together at the model; further ones wait for these."""


_LOADED_BY = ("model", "device", "dtype", "attn_implementation", "quantization", "skip_blank", "sides")
"""Fields that decide which model is loaded, and how."""


class _ModelSeat:
    """Where a postprocessor keeps its model: taken on first use, shared by copies, left behind by pickle."""

    def __init__(self, loaded_by: tuple[Any, ...], reranker: ListwiseReranker | None = None) -> None:
        self.loaded_by = loaded_by
        self._reranker = reranker
        self.choosing = threading.Lock()
        self._loading = threading.Lock()
        self.threads = ThreadPoolExecutor(max_workers=CONCURRENT_CALLS, thread_name_prefix="ziprerank")

    def reranker(self, load: Callable[[], ListwiseReranker]) -> ListwiseReranker:
        """Return the model, calling ``load`` when there is none yet."""
        with self._loading:
            if self._reranker is None:
                self._reranker = load()
            return self._reranker

    def give_folder(self, new_cache: Callable[[], FeatureCache | None]) -> None:
        """Give a model that is loaded already, and whose features have no folder yet, a cache that has one."""
        with self._loading:
            loaded = self._reranker
            if loaded is not None and (loaded.cache is None or loaded.cache.folder is None):
                loaded.cache = new_cache()

    def __deepcopy__(self, memo: dict[int, Any]) -> "_ModelSeat":
        return self

    def __reduce__(self) -> tuple[type["_ModelSeat"], tuple[tuple[Any, ...]]]:
        return type(self), (self.loaded_by,)


class ZipRerankPostprocessor(BaseNodePostprocessor):
    """Reorders retrieved pages by one forward pass of a ZipRerank model over all of them.

    Takes page images in any node that holds one; a node with text only is drawn as an image, as in the model's
    training. Returns new nodes: the score is the softmax over the pages of one forward pass, so a threshold means
    something, and the metadata gains ``ziprerank_logit``, ``ziprerank_window``, ``first_stage_score`` and
    ``first_stage_rank`` (from 1), hidden from LLMs and embedding models.

    The model is loaded on first use, from safetensors; code from the Hub is never run. Calls that wait for it at the
    same time run together, each answered as if it were alone; asynchronous ones wait in threads of this object's own.
    """

    model_config = ConfigDict(extra="forbid")  # a field that is misspelt would be its default

    model: Annotated[str, BeforeValidator(lambda name: str(name) if isinstance(name, Path) else name)] = Field(
        default="mtri-admin/ZipRerank",
        description='Reranker: "nano" (ships with the package), a folder, or a name on the Hugging Face Hub.',
    )
    top_n: int = Field(default=5, ge=1, description="Number of nodes to return, best first.")
    keep_ratio: float | None = Field(
        default=None,
        gt=0,
        le=1,
        description="Part of each page's visual tokens that the language model reads. Default: what the checkpoint's "
        "config says, which is 0.16 for nano, else 1, all of them.",
    )
    pruning: PruningMode | None = Field(
        default=None,
        description='What visual tokens are compared with when some are dropped: the whole "prompt" or the "query". '
        'Default: what the checkpoint\'s config says, which is "query" for nano, else "prompt" as in the paper.',
    )
    device: str | None = Field(default=None, description="Default: cuda, else mps, else cpu.")
    dtype: str | None = Field(
        default=None, description='Such as "bfloat16". Default: the checkpoint\'s own; float32 on a CPU.'
    )
    quantization: Quantization | None = Field(
        default=None,
        description='Smaller weights for the language model: "int8" (CPU, GPU) or "fp8" (GPU). Needs torchao.',
    )
    window: int = Field(default=20, description="Pages in one forward pass, 2 to 20.")
    stride: int = Field(default=10, description="Pages by which the window moves along a longer list, below `window`.")
    strategy: Strategy = Field(
        default="sliding",
        description='How a list longer than `window` is ranked: "sliding" as the paper measured; "parallel" in fewer '
        'sequential steps and as well; "blocks" always in two.',
    )
    permutations: int = Field(
        default=1,
        ge=1,
        le=MOST_PERMUTATIONS,
        description="Orders in which each window is read, their logits averaged, at so many times the cost: for models "
        "that favour a place without reason. nano takes the order of the nodes for a hint, and gets worse.",
    )
    first_stage_weight: float | None = Field(
        default=None,
        ge=0,
        allow_inf_nan=False,
        description="How much the nodes' own scores count beside the model: 0 the model alone, 1 both the same. "
        "Default: what the checkpoint's config says, which is 0.5 for nano, else 0 as in the paper.",
    )
    attn_implementation: str | None = Field(
        default=None,
        description='Attention of transformers, such as "sdpa" or "flash_attention_2". Default: "sdpa"; on a GPU, '
        "for the vision tower, FlashAttention 2 where it is installed.",
    )

    allow_remote_images: bool = Field(
        default=False,
        description="Fetch images that nodes name by URL: public addresses only, up to 20 MB and 20 seconds each.",
    )

    cache_dir: str | None = Field(
        default=None,
        description="Folder for the vision features of pages, which are then computed once. Default: memory alone. "
        "A copy goes on with the original's.",
    )
    cache_memory_bytes: int = Field(
        default=MEMORY_BYTES,
        ge=0,
        description="Memory for such features on the model's device; those unused for longest leave. 0: none.",
    )
    cache_dtype: StoredType | None = Field(
        default=None,
        description='Type in which they are kept, such as "bfloat16" or "int8". Default: the folder\'s, else the exact '
        "one of the model.",
    )
    skip_blank: bool = Field(
        default=False, description="Leave blank parts of pages out of the vision tower: faster, other scores."
    )
    sides: tuple[int, ...] | None = Field(
        default=None,
        description="Longest side of a page in pixels, never scaled up. Default: the checkpoint's own, which is 1280 "
        "for nano, else 1024 as in the paper. A shorter one is faster. At several sides every page is read at each and "
        "the logits are averaged, at their cost together.",
    )

    _seat: _ModelSeat = PrivateAttr()
    _lent_dir: str | None = PrivateAttr(default=None)

    @model_validator(mode="before")
    @classmethod
    def _without_class_name(cls, fields: Any) -> Any:  # which `to_dict` writes beside the fields
        return {name: fields[name] for name in fields if name != "class_name"} if isinstance(fields, dict) else fields

    @model_validator(mode="after")
    def _check_window_and_take_seat(self) -> Self:
        check_window(self.window, self.stride)
        if self.sides is not None:
            check_sides(self.sides)
        self._seat = _ModelSeat(self._loaded_by())
        return self

    @classmethod
    def class_name(cls) -> str:
        """Name under which LlamaIndex serialises this class."""
        return "ZipRerankPostprocessor"

    @classmethod
    def from_reranker(cls, reranker: ListwiseReranker, **fields: Any) -> Self:
        """Use a model that is already loaded, which several postprocessors may share.

        ``fields`` are those of the class without ``model``, ``skip_blank`` and ``sides``, which are the reranker's
        (TypeError). So is the cache, and a ``cache_dir`` or `use_cache_dir` gives one a folder that has none. Pickled
        or serialised, the copy loads the model by the reranker's name.
        """
        postprocessor = cls(model=reranker.name, skip_blank=reranker.skip_blank, sides=reranker.sides, **fields)
        postprocessor._seat = _ModelSeat(postprocessor._loaded_by(), reranker)
        if postprocessor.cache_dir is not None:
            postprocessor._seat.give_folder(postprocessor._new_cache)
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
            cancelled = _cancelled.get()
            images = [self._page(node.node) for node in _until(cancelled, nodes)]
            ranking = self._reranker().rerank(
                query_bundle.query_str.strip(),
                images,
                first_stage_scores=[node.score for node in nodes],
                cancelled=cancelled,
                **self._asked(),
            )
            reranked = [_reranked(nodes, ranking, i) for i in ranking.order[: self.top_n]]
            event.on_end(payload={EventPayload.NODES: reranked})
        dispatcher.event(ReRankEndEvent(nodes=reranked))
        return reranked

    async def _apostprocess_nodes(
        self, nodes: list[NodeWithScore], query_bundle: QueryBundle | None = None
    ) -> list[NodeWithScore]:
        """Rerank in this object's threads: waiting calls block neither the loop nor its default thread pool.

        A call that is cancelled reads no further page, and gives its place at the model up.
        """
        cancelled = threading.Event()
        context = contextvars.copy_context()  # carries the tracing span along
        context.run(_cancelled.set, cancelled)
        loop = asyncio.get_running_loop()
        try:
            return await loop.run_in_executor(
                self._seat.threads, context.run, self._postprocess_nodes, nodes, query_bundle
            )
        finally:  # cancelled, or left behind by a loop that was closed; an answered call has nothing to give up
            cancelled.set()

    def explain(
        self, query: str | QueryBundle, nodes: Sequence[NodeWithScore], first_stage: "HasEncoder | None" = None
    ) -> Explanation:
        """Rerank, and tell what the ranking rests on: pictures by its ``draw`` methods, HTML by `report`.

        Args:
            query: the question.
            nodes: the candidates, as `postprocess_nodes` takes them; they stay as they are.
            first_stage: the index or retriever they come from, to draw what it saw on the best ``top_n`` pages.

        Raises:
            ValueError: for a blank query, no node, or a node without image and text.
        """
        from llama_index_ziprerank.retrieval.similarity import similarity_maps  # its colpali-engine is slow to import

        question = (query if isinstance(query, str) else query.query_str).strip()
        reranker = self._reranker()
        return explain(
            reranker,
            question,
            [Candidate(node_title(node.node), self._page(node.node), node.score) for node in nodes],
            reranker.options(**self._asked()),
            top_n=self.top_n,
            draw_first_stage=None if first_stage is None else similarity_maps(first_stage.encoder, question),
        )

    def use_cache_dir(self, folder: str | Path) -> None:
        """Keep features in ``folder`` unless `cache_dir` says already where.

        An index lends its own folder by this, and forgets there the features of pages that leave it. A postprocessor
        has one folder: of a second index it keeps the features in the first one's, where they stay when their pages
        go, and warns (UserWarning). Give each index a postprocessor of its own, or this one a `cache_dir` that is no
        index's. Postprocessors that share a reranker share its folder too.
        """
        lent = str(Path(folder).absolute())
        if self.cache_dir is None:
            self.cache_dir = str(folder)
            self._lent_dir = lent
            self._own_seat().give_folder(self._new_cache)
        elif self._lent_dir not in (None, lent):
            warn(
                f"This postprocessor keeps features in {self.cache_dir}, the folder of another index, and not in "
                f"{folder}: features of pages that leave the second index stay there. Give each index a postprocessor "
                "of its own, or this one a cache_dir that is no index's.",
                UserWarning,
                stacklevel=2,
            )

    def cache_cost(self, nodes: Iterable[BaseNode]) -> DiskCost:
        """Return what `cache_pages` will write for these nodes, from the sizes of their images alone.

        Raises:
            NodeImageError: a node has neither image nor text, or its image is missing.
            ValueError: when there is no cache: `cache_memory_bytes` is 0, and no `cache_dir` is given; or the reranker
                of `from_reranker` has none.
        """
        return self._caching_reranker().cache_cost(self._page(node) for node in nodes)

    def cache_pages(self, nodes: Iterable[BaseNode]) -> int:
        """Compute the vision features of nodes before they are asked about; return how many were not there yet.

        Raises:
            NodeImageError, ValueError: as `cache_cost`.
        """
        return self._caching_reranker().cache_pages(self._page(node) for node in nodes)

    def _caching_reranker(self) -> ListwiseReranker:
        reranker = self._reranker()
        if reranker.cache is None:
            raise ValueError(
                "There is no cache to keep features in. Pass a cache_dir, or cache_memory_bytes above 0; a reranker "
                "given to from_reranker brings its own: load it with cache=FeatureCache(folder)."
            )
        return reranker

    def _loaded_by(self) -> tuple[Any, ...]:
        return tuple(getattr(self, name) for name in _LOADED_BY)

    def _own_seat(self) -> _ModelSeat:
        """Return the seat of the model that the fields name: another than the original's for a copy with others."""
        seat = self._seat
        with seat.choosing:
            if self._seat is seat and seat.loaded_by != self._loaded_by():
                self._seat = _ModelSeat(self._loaded_by())
        return self._seat

    def _reranker(self) -> ListwiseReranker:
        return self._own_seat().reranker(self._load)

    def _page(self, node: BaseNode) -> PageSource:
        """Read a node's page, which is decoded only when its features are not known; text becomes an image."""
        content = node_image_file(node, remote=self._remote)
        if content is None:
            return page_image_or_rendered_text(node)
        return PageFile(content, partial(decode_node_image, node.node_id))

    def _asked(self) -> dict[str, Any]:
        """Return what `RankingOptions` decides by."""
        return {option.name: getattr(self, option.name) for option in dataclasses.fields(RankingOptions)}

    def _new_cache(self) -> FeatureCache | None:
        if self.cache_dir is None and not self.cache_memory_bytes:
            return None
        return FeatureCache(self.cache_dir, memory_bytes=self.cache_memory_bytes, dtype=self.cache_dtype)

    @property
    def _remote(self) -> RemoteImages | None:
        return RemoteImages() if self.allow_remote_images else None

    def _load(self) -> ListwiseReranker:
        return ListwiseReranker.from_pretrained(
            self.model,
            self.device,
            self.dtype,
            self.attn_implementation,
            cache=self._new_cache(),
            skip_blank=self.skip_blank,
            sides=self.sides,
            quantization=self.quantization,
        )


def _until(cancelled: threading.Event | None, nodes: Iterable[NodeWithScore]) -> Iterator[NodeWithScore]:
    """Yield nodes until the call is given up: a page behind a URL may take seconds, and a thread meanwhile."""
    for node in nodes:
        if cancelled is not None and cancelled.is_set():
            raise CancelledError
        yield node


def _reranked(nodes: list[NodeWithScore], ranking: Ranking, i: int) -> NodeWithScore:
    score = nodes[i].score
    values = {
        LOGIT: ranking.logits[i],
        WINDOW: ranking.window_of[i],
        FIRST_STAGE_SCORE: None if score is None else float(score),  # other rerankers leave NumPy's numbers there
        FIRST_STAGE_RANK: i + 1,
    }
    return with_scores(nodes[i].node, ranking.scores[i], values)
