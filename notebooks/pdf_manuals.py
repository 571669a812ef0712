# %% [markdown]
# # Your first hour: a PDF manual, with and without the reranker
#
# A LlamaIndex user's walk through one real manual: read, index, ask, look at what the reranker changed and what it read,
# measure it, and put it into engines that you have. It runs offline on a CPU with `nano`, the small pair of models in the
# package. `nano` shows how things fit together; judge the method by the full model.
# %%
import warnings
from itertools import islice
from pathlib import Path

warnings.filterwarnings("ignore")

from llama_index.core.llms import MockLLM

from llama_index_ziprerank import ColPaliIndex, PDFPageReader, ZipRerankPostprocessor
from llama_index_ziprerank.nodes import node_title

MANUAL = next(folder / "demo" for folder in [Path.cwd(), *Path.cwd().parents] if (folder / "demo").is_dir()) / (
    "gle-manual-chapters-4-9.pdf"
)
QUESTION = "How do I draw a bar graph?"
# %% [markdown]
# ## Read
#
# One page becomes one document: its picture, and its own text beside it. We take the first 24 pages.
# %%
pages = list(islice(PDFPageReader(dpi=100).lazy_load_data(MANUAL), 24))
print(len(pages), "pages;", pages[15].metadata)
# %% [markdown]
# ## Index and ask
#
# `ColPaliIndex` keeps many small vectors a page. The retriever compares each word of the question with each patch of
# each page.
# %%
index = ColPaliIndex.from_documents(pages, model="nano")
found = index.as_retriever(similarity_top_k=12).retrieve(QUESTION)
for rank, node in enumerate(found[:5], start=1):
    print(rank, node_title(node.node), round(node.score, 2))
# %% [markdown]
# ## Ask with the reranker
#
# Twelve pages and the question go into one forward pass. The logits of the letters A to L at its end are the order.
# `first_stage_rank` tells where a page stood before.
# %%
reranker = ZipRerankPostprocessor(model="nano", top_n=3, keep_ratio=0.5)
for rank, node in enumerate(reranker.postprocess_nodes(found, query_str=QUESTION), start=1):
    print(rank, node_title(node.node), f"{node.score:.3f}", "before:", node.metadata["first_stage_rank"])
# %% [markdown]
# ## What changed, and what was read
#
# Warm patches look like the question; veiled ones were dropped before the language model (`keep_ratio=0.5`). Below them
# the probability of each page's letter.
# %%
explanation = reranker.explain(QUESTION, found)
picture = explanation.draw()
picture.thumbnail((1000, 1400))
picture
# %% [markdown]
# `llama_index_ziprerank.report.write_report(explanation, "out.html")` writes the same as a page for the browser; on the
# command line it is `ziprerank ask … --report out.html`.
#
# ## Measure it on the manual's own outline
#
# The outline says on which page each heading stands: labels that nobody of us wrote. `from_manual` makes questions of it.
# We keep those whose answer is among our 24 pages.
# %%
from llama_index_ziprerank.evaluators import PageRetrievalEvaluator, RetrievalDataset, page_key

everything = RetrievalDataset.from_manual(MANUAL, kinds=["heading"])
indexed = {page_key(page) for page in pages}
asked = [name for name, pages_of_it in everything.qrels.items() if set(pages_of_it) <= indexed][:10]
dataset = RetrievalDataset(
    {name: everything.queries[name] for name in asked}, {name: everything.qrels[name] for name in asked}
)
deep = ZipRerankPostprocessor(model="nano", top_n=12, keep_ratio=0.5)
report = await PageRetrievalEvaluator(index.as_retriever(12), [deep], key=page_key).aevaluate(dataset)
print(report)
# %% [markdown]
# Few questions give wide intervals. `ziprerank evaluate manuals` does the same for whole manuals, from the shell.
#
# ## Swap nano for the real models
#
# Only the names change. You need a GPU of 24 GB or more, or patience. This cell is shown, not run.
#
# ```python
# index = ColPaliIndex.from_documents(pages, model="vidore/colqwen2-v1.0", persist_dir="manual.index")
# reranker = ZipRerankPostprocessor(model="mtri-admin/ZipRerank", dtype="bfloat16", top_n=5)
# ```
#
# ## In a query engine
#
# The LLM gets the page images themselves. `MockLLM` stands for your multimodal LLM.
# %%
llm = MockLLM(max_tokens=6, is_chat_model=True)
engine = index.as_query_engine(llm=llm, similarity_top_k=12, node_postprocessors=[reranker])
answer = engine.query(QUESTION)
print(answer, [node.metadata["page_label"] for node in answer.source_nodes])
# %% [markdown]
# ## In a chat engine
#
# LlamaIndex's `ContextChatEngine` hands the LLM the pages' text; its postprocessors still see the images.
# %%
from llama_index.core.chat_engine import ContextChatEngine

chat = ContextChatEngine.from_defaults(
    index.as_retriever(similarity_top_k=12), llm=MockLLM(max_tokens=6), node_postprocessors=[reranker]
)
print([node.metadata["page_label"] for node in chat.chat("How do I draw a bar graph?").source_nodes])
# %% [markdown]
# ## In a workflow
# %%
from llama_index.core.workflow import Event, StartEvent, StopEvent, Workflow, step


class Candidates(Event):
    question: str
    nodes: list


class FindPages(Workflow):
    @step
    async def retrieve(self, event: StartEvent) -> Candidates:
        nodes = await index.as_retriever(similarity_top_k=12).aretrieve(event.question)
        return Candidates(question=event.question, nodes=nodes)

    @step
    async def rerank(self, event: Candidates) -> StopEvent:
        best = await reranker.apostprocess_nodes(event.nodes, query_str=event.question)
        return StopEvent(result=[node_title(node.node) for node in best])


await FindPages(timeout=600).run(question=QUESTION)
# %%
index.close()
