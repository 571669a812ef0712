import base64
import copy
import json
import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from llama_index.core.callbacks import CallbackManager, CBEventType, LlamaDebugHandler
from llama_index.core.instrumentation import get_dispatcher
from llama_index.core.instrumentation.event_handlers import BaseEventHandler
from llama_index.core.instrumentation.events import BaseEvent
from llama_index.core.instrumentation.events.rerank import ReRankEndEvent, ReRankStartEvent
from llama_index.core.schema import (
    BaseNode,
    ImageDocument,
    ImageNode,
    MediaResource,
    MetadataMode,
    Node,
    NodeWithScore,
    TextNode,
)
from PIL import Image
from pydantic import PrivateAttr
from reranked_pages import PAGES, PARITY, QUERY, ids

from llama_index_ziprerank.pages.text import render_text
from llama_index_ziprerank.postprocessors import ZipRerankPostprocessor
from llama_index_ziprerank.reranking import ListwiseReranker


class Recorder(BaseEventHandler):
    """Keeps the reranking events."""

    _events: list[BaseEvent] = PrivateAttr(default_factory=list)

    def handle(self, event: BaseEvent, **kwargs: Any) -> None:
        if isinstance(event, ReRankStartEvent | ReRankEndEvent):
            self._events.append(event)


@pytest.fixture
def recorder() -> Iterator[Recorder]:
    handler, root = Recorder(), get_dispatcher("root")
    root.add_event_handler(handler)
    yield handler
    root.event_handlers.remove(handler)


def snapshot(nodes: list[NodeWithScore]) -> list[str]:
    return [json.dumps(node.to_dict(), sort_keys=True) for node in nodes]


def test_the_best_nodes_come_first_with_the_scores_of_the_room(
    postprocessor: ZipRerankPostprocessor, reranker: ListwiseReranker, nodes: list[NodeWithScore]
) -> None:
    ranking = reranker.rerank(QUERY, [Image.open(path) for path in PAGES])
    reranked = postprocessor.postprocess_nodes(nodes, query_str=QUERY)
    assert ids(reranked) == [PAGES[i].stem for i in ranking.order[:3]]
    assert [node.score for node in reranked] == pytest.approx([ranking.scores[i] for i in ranking.order[:3]])


def test_the_scores_of_nodes_count_as_much_as_their_weight_says(
    reranker: ListwiseReranker, nodes: list[NodeWithScore]
) -> None:
    def ids(weight: float | None, given: list[NodeWithScore]) -> list[str]:
        fused = ZipRerankPostprocessor.from_reranker(reranker, top_n=8, first_stage_weight=weight)
        return [node.node_id for node in fused.postprocess_nodes(given, query_str=QUERY)]

    alone = ids(None, nodes)
    assert alone == ids(0, nodes) == ids(9, [NodeWithScore(node=one.node) for one in nodes])  # without scores: as if 0
    assert ids(1000, nodes) == [node.node_id for node in nodes] != alone


def test_the_callers_nodes_stay_as_they_were(postprocessor: ZipRerankPostprocessor, nodes: list[NodeWithScore]) -> None:
    before = snapshot(nodes)
    reranked = postprocessor.postprocess_nodes(nodes, query_str=QUERY)
    reranked[0].node.metadata["mine"] = 1
    reranked[0].node.excluded_llm_metadata_keys.append("mine")
    assert snapshot(nodes) == before


def test_the_scores_before_and_after_stay_out_of_the_text_models_read(
    postprocessor: ZipRerankPostprocessor, nodes: list[NodeWithScore]
) -> None:
    best = postprocessor.postprocess_nodes(nodes, query_str=QUERY)[0]
    given = nodes[ids(nodes).index(best.node.node_id)]
    assert best.node.metadata["first_stage_score"] == given.score
    assert best.node.metadata["first_stage_rank"] == nodes.index(given) + 1
    assert best.node.metadata["ziprerank_window"] == 0
    assert isinstance(best.node.metadata["ziprerank_logit"], float)
    for mode in (MetadataMode.LLM, MetadataMode.EMBED):
        assert best.node.get_content(mode) == given.node.get_content(mode)


def test_scores_that_another_reranker_left_as_numpy_numbers_are_kept_as_json_can_hold_them(
    postprocessor: ZipRerankPostprocessor, nodes: list[NodeWithScore]
) -> None:
    for node in nodes:
        node.score = np.float32(0.5)  # type: ignore[assignment]  # as SentenceTransformerRerank does
    best = postprocessor.postprocess_nodes(nodes, query_str=QUERY)[0]
    assert json.loads(json.dumps(best.to_dict()))["node"]["metadata"]["first_stage_score"] == 0.5


def test_no_node_is_lost_or_doubled_before_top_n(reranker: ListwiseReranker, nodes: list[NodeWithScore]) -> None:
    twice = [*nodes, *nodes]  # equal pages tie, and keep their order
    reranked = ZipRerankPostprocessor.from_reranker(reranker, top_n=99, window=7, stride=3).postprocess_nodes(
        twice, query_str=QUERY
    )
    assert sorted(ids(reranked)) == sorted(ids(twice))
    assert sorted(node.node.metadata["first_stage_rank"] for node in reranked) == list(range(1, 17))


def test_every_kind_of_node_may_stand_in_one_list(reranker: ListwiseReranker) -> None:
    data = PAGES[0].read_bytes()
    text = "The width of an axis line is set by xaxis lwidth."
    same_page: list[BaseNode] = [
        ImageNode(image_path=str(PAGES[0])),
        ImageNode(image=base64.b64encode(data).decode()),
        ImageNode(image_url="data:image/png;base64," + base64.b64encode(data).decode()),
        Node(image_resource=MediaResource(path=PAGES[0])),
        Node(image_resource=MediaResource(data=data), text_resource=MediaResource(text="with text")),
        ImageDocument(image_path=str(PAGES[0])),
        TextNode(text=text),
    ]
    expected = reranker.rerank(QUERY, [Image.open(PAGES[0])] * 6 + [render_text(text)])
    reranked = ZipRerankPostprocessor.from_reranker(reranker, top_n=7).postprocess_nodes(
        [NodeWithScore(node=node) for node in same_page], query_str=QUERY
    )
    assert [node.node.metadata["first_stage_rank"] - 1 for node in reranked] == expected.order
    assert [node.score for node in reranked] == pytest.approx([expected.scores[i] for i in expected.order])


@pytest.mark.parametrize(
    "node",
    [
        ImageNode(id_="the-bad-page", image_path="/no/such/page.png"),
        ImageNode(id_="the-bad-page", image=base64.b64encode(b"no picture").decode()),
        ImageNode(id_="the-bad-page", image_url="https://example.com/page.png"),
        TextNode(id_="the-bad-page", text=" "),
    ],
    ids=["missing", "damaged", "remote", "empty"],
)
def test_a_page_that_cannot_be_read_is_named(
    postprocessor: ZipRerankPostprocessor, nodes: list[NodeWithScore], node: BaseNode
) -> None:
    with pytest.raises(ValueError, match="the-bad-page"):
        postprocessor.postprocess_nodes([*nodes, NodeWithScore(node=node)], query_str=QUERY)


def test_spaces_around_the_query_change_nothing(
    postprocessor: ZipRerankPostprocessor, nodes: list[NodeWithScore]
) -> None:
    padded = postprocessor.postprocess_nodes(nodes, query_str=f"\n{QUERY}\n")
    assert padded == postprocessor.postprocess_nodes(nodes, query_str=QUERY)


def test_an_empty_list_and_a_missing_query_raise_no_event(
    postprocessor: ZipRerankPostprocessor, nodes: list[NodeWithScore], recorder: Recorder
) -> None:
    assert postprocessor.postprocess_nodes([]) == []
    assert postprocessor.postprocess_nodes([], query_str=QUERY) == []
    with pytest.raises(ValueError, match="ranks nodes by a query, got none"):
        postprocessor.postprocess_nodes(nodes)
    with pytest.raises(ValueError, match="ranks nodes by a query, got none"):
        postprocessor.postprocess_nodes(nodes, query_str="\n ")
    assert recorder._events == []


def test_reranking_is_announced_to_dispatcher_and_callbacks(
    postprocessor: ZipRerankPostprocessor, nodes: list[NodeWithScore], recorder: Recorder
) -> None:
    debug = LlamaDebugHandler(print_trace_on_end=False)
    postprocessor.callback_manager = CallbackManager([debug])
    reranked = postprocessor.postprocess_nodes(nodes, query_str=QUERY)
    start, end = recorder._events
    assert isinstance(start, ReRankStartEvent) and isinstance(end, ReRankEndEvent)
    assert (start.top_n, start.model_name, ids(start.nodes)) == (3, postprocessor.model, ids(nodes))
    assert end.nodes == reranked
    [(opened, closed)] = debug.get_event_pairs(CBEventType.RERANKING)
    assert opened.payload is not None and closed.payload is not None
    assert (opened.payload["query_str"], opened.payload["top_k"]) == (QUERY, 3)
    assert closed.payload["nodes"] == reranked


def test_the_model_is_loaded_on_first_use(nodes: list[NodeWithScore]) -> None:
    missing = ZipRerankPostprocessor(model="/no/such/checkpoint")
    with pytest.raises(FileNotFoundError, match="/no/such/checkpoint"):
        missing.postprocess_nodes(nodes, query_str=QUERY)


def test_a_model_may_be_a_path() -> None:
    assert ZipRerankPostprocessor(model=Path("a") / "b").model == "a/b"  # type: ignore[arg-type]


def test_many_first_calls_load_one_model(nodes: list[NodeWithScore]) -> None:
    postprocessor = ZipRerankPostprocessor(model=str(PARITY / "checkpoint"), device="cpu", top_n=2)
    loaded = {id(postprocessor._reranker()) for _ in range(3)}
    assert len(loaded) == 1
    assert len(postprocessor.postprocess_nodes(nodes, query_str=QUERY)) == 2


def test_serialised_and_pickled_copies_rerank_alike(reranker: ListwiseReranker, nodes: list[NodeWithScore]) -> None:
    original = ZipRerankPostprocessor.from_reranker(
        reranker, top_n=4, keep_ratio=0.5, device="cpu", dtype="float32", first_stage_weight=1
    )
    expected = original.postprocess_nodes(nodes, query_str=QUERY)
    pickled = pickle.dumps(original)
    assert len(pickled) < 20_000  # the model stays behind
    copies = [
        ZipRerankPostprocessor.from_dict(json.loads(json.dumps(original.to_dict()))),
        ZipRerankPostprocessor.from_json(original.to_json()),
        pickle.loads(pickled),
        copy.deepcopy(original),
    ]
    for twin in copies:
        assert twin.to_dict() == original.to_dict()
        assert twin.postprocess_nodes(nodes, query_str=QUERY) == expected


@pytest.mark.parametrize("is_loaded", [True, False])
def test_a_copy_that_names_another_model_does_not_get_the_originals(
    postprocessor: ZipRerankPostprocessor, nodes: list[NodeWithScore], is_loaded: bool
) -> None:
    original = postprocessor if is_loaded else ZipRerankPostprocessor(model=postprocessor.model, device="cpu", top_n=3)
    other = original.model_copy(update={"model": "/no/such"})
    with pytest.raises(FileNotFoundError, match="/no/such"):
        other.postprocess_nodes(nodes, query_str=QUERY)
    expected = postprocessor.postprocess_nodes(nodes, query_str=QUERY)
    assert original.postprocess_nodes(nodes, query_str=QUERY) == expected
    half = original.model_copy(update={"keep_ratio": 0.5})
    assert half._reranker() is original._reranker()
    half.model = "/none/here"
    with pytest.raises(FileNotFoundError, match="/none/here"):
        half.postprocess_nodes(nodes, query_str=QUERY)


def test_every_copy_sees_pages_as_the_reranker_does(reranker: ListwiseReranker) -> None:
    other = ListwiseReranker(reranker.model, reranker.processor, reranker.name, skip_blank=True, sides=(512, 768))
    original = ZipRerankPostprocessor.from_reranker(other, device="cpu")
    for twin in (ZipRerankPostprocessor.from_dict(original.to_dict()), pickle.loads(pickle.dumps(original))):
        assert twin._reranker().skip_blank
        assert twin._reranker().sides == (512, 768)


@pytest.mark.parametrize("field", [{"sides": (512,)}, {"skip_blank": True}])
def test_how_a_given_reranker_sees_pages_cannot_be_asked_for(reranker: ListwiseReranker, field: dict[str, Any]) -> None:
    with pytest.raises(TypeError, match=next(iter(field))):
        ZipRerankPostprocessor.from_reranker(reranker, **field)


def test_a_given_reranker_without_a_folder_keeps_features_in_the_one_asked_for(
    reranker: ListwiseReranker, nodes: list[NodeWithScore], tmp_path: Path
) -> None:
    own = ListwiseReranker(reranker.model, reranker.processor, reranker.name)
    postprocessor = ZipRerankPostprocessor.from_reranker(own, cache_dir=str(tmp_path / "first"))
    postprocessor.postprocess_nodes(nodes, query_str=QUERY)
    assert len(list(tmp_path.glob("first/**/*.safetensors"))) == len(nodes)
    ZipRerankPostprocessor.from_reranker(own, cache_dir=str(tmp_path / "second"))
    assert own.cache is not None and own.cache.folder == tmp_path / "first"


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("top_n", 0),
        ("keep_ratio", 0),
        ("keep_ratio", 1.5),
        ("keep_ratio", float("nan")),
        ("pruning", "letters"),
        ("window", 21),
        ("stride", 20),
        ("strategy", "both"),
        ("permutations", 0),
        ("permutations", 65),
        ("quantization", "int4"),
        ("sides", (100,)),
        ("first_stage_weight", -1),
    ],
)
def test_a_field_out_of_its_bounds_is_refused_at_once(field: str, value: Any) -> None:
    with pytest.raises(ValueError, match=str(value)):
        ZipRerankPostprocessor(**{field: value})


def test_a_misspelt_field_is_refused_and_what_was_serialised_is_not() -> None:
    with pytest.raises(ValueError, match="keep_rato"):
        ZipRerankPostprocessor(keep_rato=0.5)  # type: ignore[call-arg]
    fields = ZipRerankPostprocessor(keep_ratio=0.5).to_dict()
    assert ZipRerankPostprocessor(**fields).keep_ratio == ZipRerankPostprocessor.from_dict(fields).keep_ratio == 0.5


def test_long_lists_may_be_read_in_parallel_and_windows_more_than_once(
    reranker: ListwiseReranker, nodes: list[NodeWithScore]
) -> None:
    twice = ZipRerankPostprocessor.from_reranker(
        reranker, top_n=8, window=4, stride=2, strategy="parallel", permutations=2
    )
    ranking = reranker.rerank(
        QUERY, [Image.open(path) for path in PAGES], window=4, stride=2, strategy="parallel", permutations=2
    )
    assert ids(twice.postprocess_nodes(nodes, query_str=QUERY)) == [PAGES[i].stem for i in ranking.order]
