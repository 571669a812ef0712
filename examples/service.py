"""A web service that finds pages, reranks them and streams the answer as server-sent events.

    pip install 'llama-index-ziprerank[examples]'
    python examples/service.py
    curl -N 'http://127.0.0.1:8000/ask?question=How+are+error+bars+drawn%3F'

First comes one event `pages`, then the words of the answer. Questions that wait for the model at the same time go
through it together. MockLLM stands for your multimodal LLM.
"""

import json
from collections.abc import AsyncIterator
from itertools import islice
from pathlib import Path

import uvicorn
from fastapi import FastAPI
from fastapi.responses import StreamingResponse
from llama_index.core.base.base_query_engine import BaseQueryEngine
from llama_index.core.llms import MockLLM

from llama_index_ziprerank import ColPaliIndex, PDFPageReader, ZipRerankPostprocessor
from llama_index_ziprerank.nodes import node_title

MANUAL = Path(__file__).parent.parent / "demo" / "gle-manual-chapters-4-9.pdf"


def build_engine(pages: int = 54) -> BaseQueryEngine:
    """Index the manual's first pages and return an engine that streams."""
    index = ColPaliIndex.from_documents(islice(PDFPageReader().lazy_load_data(MANUAL), pages))
    return index.as_query_engine(
        llm=MockLLM(max_tokens=8, is_chat_model=True),
        node_postprocessors=[ZipRerankPostprocessor(model="nano", top_n=3)],
        streaming=True,
    )


def create_app(engine: BaseQueryEngine) -> FastAPI:
    """Return the service."""
    app = FastAPI(title="Ask the manual")

    @app.get("/ask")
    async def ask(question: str) -> StreamingResponse:
        answer = await engine.aquery(question)

        async def events() -> AsyncIterator[str]:
            found = [{"page": node_title(node.node), "score": node.score} for node in answer.source_nodes]
            yield _event("pages", found)
            async for words in answer.response_gen:
                yield _event("words", words)

        return StreamingResponse(events(), media_type="text/event-stream")

    return app


def _event(name: str, content: object) -> str:
    return f"event: {name}\ndata: {json.dumps(content)}\n\n"


def main() -> None:
    """Serve until interrupted."""
    uvicorn.run(create_app(build_engine()), host="127.0.0.1", port=8000)


if __name__ == "__main__":
    main()
