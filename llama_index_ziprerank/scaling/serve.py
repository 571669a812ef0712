"""A reranker behind Ray Serve: `reranker_app` on the cluster, `ServedReranker` in a query engine.

>>> serve.run(reranker_app(model="mtri-admin/ZipRerank", num_replicas=4, num_gpus=1), name="rerank")
>>> engine = index.as_query_engine(llm=llm, node_postprocessors=[ServedReranker(app="rerank")])

Over HTTP: ``POST {"query": ..., "nodes": [{"node": ..., "score": ...}, ...]}``, each node as LlamaIndex's
``storage.docstore.utils.doc_to_json`` writes it; the answer is ``{"nodes": [...]}``, best first, or
``{"error": ...}`` with status 400. A node may name an image file, which the replica opens: let in only whom you trust.
Questions that wait at one replica go through the model together.
"""

from typing import Any

from llama_index.core.async_utils import asyncio_run
from llama_index.core.bridge.pydantic import BaseModel, Field
from llama_index.core.postprocessor.types import BaseNodePostprocessor
from llama_index.core.schema import NodeWithScore, QueryBundle, TextNode
from llama_index.core.storage.docstore.utils import doc_to_json, json_to_doc
from ray import serve
from ray.exceptions import RayTaskError
from starlette.requests import Request
from starlette.responses import JSONResponse

from llama_index_ziprerank.postprocessors import CONCURRENT_CALLS, ZipRerankPostprocessor


class _Candidate(BaseModel):
    node: dict[str, Any]
    score: float | None = None


class _Request(BaseModel):
    query: str
    nodes: list[_Candidate]


class _Replica:
    """One loaded postprocessor."""

    def __init__(self, fields: dict[str, Any]) -> None:
        self._postprocessor = ZipRerankPostprocessor(**fields)
        page = NodeWithScore(node=TextNode(text="The first page."))
        self._postprocessor.postprocess_nodes([page], query_str="What loads the model?")  # before the first question

    async def rerank(self, query: str, nodes: list[NodeWithScore]) -> list[NodeWithScore]:
        """Rerank as the postprocessor does."""
        return await self._postprocessor.apostprocess_nodes(nodes, query_str=query)

    async def __call__(self, request: Request) -> JSONResponse:
        """Answer a request over HTTP."""
        try:
            asked = _Request.model_validate(await request.json())
            nodes = [NodeWithScore(node=json_to_doc(sent.node), score=sent.score) for sent in asked.nodes]
            ranked = await self.rerank(asked.query, nodes)
        except KeyError as error:
            return JSONResponse({"error": f"A node lacks {error}. Send what doc_to_json writes."}, status_code=400)
        except ValueError as error:  # what came is no JSON, no request, or holds what cannot be ranked
            return JSONResponse({"error": str(error)}, status_code=400)
        return JSONResponse({"nodes": [{"node": doc_to_json(one.node), "score": one.score} for one in ranked]})


def reranker_app(
    *, num_replicas: int | str = 1, num_gpus: float = 0, num_cpus: float = 1, **fields: Any
) -> serve.Application:
    """Return the application that `ray.serve.run` deploys.

    Args:
        num_replicas: models that answer at the same time, or ``"auto"``.
        num_gpus: GPUs of each; 0 for CPUs.
        num_cpus: CPUs of each.
        fields: of `ZipRerankPostprocessor`.

    Raises:
        ValueError: for a field that it has not, or one out of its bounds.
    """
    ZipRerankPostprocessor(**fields)
    deployment = serve.deployment(
        num_replicas=num_replicas,
        ray_actor_options={"num_gpus": num_gpus, "num_cpus": num_cpus},
        max_ongoing_requests=CONCURRENT_CALLS,
    )(_Replica)
    return deployment.bind(fields)


class ServedReranker(BaseNodePostprocessor):
    """Reorders nodes by a reranker that Ray Serve runs: same answers as its `ZipRerankPostprocessor`.

    For processes that are on the Ray cluster. How many nodes come back, and what the model reads, the served one says.
    Images that nodes name by path must lie where replicas find them. Errors are those of the served postprocessor.
    """

    app: str = Field(default="default", description="Name that the application was given by `serve.run`.")

    @classmethod
    def class_name(cls) -> str:
        """Return the name that serialized postprocessors carry."""
        return "ServedReranker"

    def _postprocess_nodes(
        self, nodes: list[NodeWithScore], query_bundle: QueryBundle | None = None
    ) -> list[NodeWithScore]:
        return asyncio_run(self._apostprocess_nodes(nodes, query_bundle))

    async def _apostprocess_nodes(
        self, nodes: list[NodeWithScore], query_bundle: QueryBundle | None = None
    ) -> list[NodeWithScore]:
        query = query_bundle.query_str if query_bundle else ""
        try:
            return await serve.get_app_handle(self.app).rerank.remote(query, nodes)
        except RayTaskError as error:  # its own message is a traceback of another machine
            raise error.cause from error
