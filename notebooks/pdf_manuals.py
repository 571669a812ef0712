# %% [markdown]
# # Your first hour: a PDF manual, with and without the reranker
#
# A LlamaIndex user's walk through one real manual: read, index, ask, look at what the reranker changed and what it read,
# measure it, and put it into engines that you have. It runs offline on a CPU with `nano`, the small pair of models in the
# package. `nano` shows how things fit together; judge the method by the full model.

# %%
from pathlib import Path

from llama_index.core.llms import MockLLM

from llama_index_ziprerank import ColPaliIndex, PDFPageReader, ZipRerankPostprocessor
from llama_index_ziprerank.nodes import node_title

ROOT = next(folder for folder in [Path.cwd(), *Path.cwd().parents] if (folder / "demo").is_dir())
MANUAL = ROOT / "demo" / "gle-manual-chapters-4-9.pdf"
QUESTION = "How do I draw a surface plot?"

# %% [markdown]
# ## Read
#
# One page becomes one document: its picture, and its own text beside it. This is the manual of GLE, a language for
# drawing graphs: 54 pages, numbered from 23 as in print.

# %%
pages = PDFPageReader().load_data(MANUAL)
print(len(pages), "pages; the 17th is printed as page", pages[16].metadata["page_label"])

# %% [markdown]
# ## Index and ask, without the reranker
#
# `ColPaliIndex` keeps many small vectors a page. The retriever compares each word of the question with each patch of
# each page.

# %%
index = ColPaliIndex.from_documents(pages, model="nano")
found = index.as_retriever(similarity_top_k=20).retrieve(QUESTION)
for rank, node in enumerate(found[:12], start=1):
    print(f"{rank:2}  {node.score:.2f}  {node_title(node.node)}")

# %% [markdown]
# ## Ask with the reranker
#
# Twenty pages and the question go into one forward pass. The logits of the letters A to T at its end are the order; with
# `nano` the first stage's scores count half as much (`first_stage_weight`; 0 is the model alone, as in the paper).
# `first_stage_rank` tells where a page stood before. Chapter 9, Surface and Contour Plots, begins on page 69; page 73 is of
# it too. Page 41, about other plots, has next to nothing of the score.

# %%
reranker = ZipRerankPostprocessor(model="nano", top_n=3)


def show(question, candidates):
    for rank, node in enumerate(reranker.postprocess_nodes(candidates, query_str=question), start=1):
        print(f"{rank}  {node.score:.3f}  {node_title(node.node)}, before: rank {node.metadata['first_stage_rank']}")


show(QUESTION, found)

# %% [markdown]
# The question was chosen because its order improves. Others do not: the chapter on keys begins on page 45, which the first
# stage puts third, and the reranker only fifth.

# %%
other = "How do I add a key to a graph?"
show(other, index.as_retriever(similarity_top_k=20).retrieve(other))

# %% [markdown]
# ## What changed, and what was read
#
# Above: what the reranker read. Warm patches look like the question; veiled ones were dropped before the language model
# (nano's own `keep_ratio` is 0.16). Then what the first stage matched: a frame is the best match of a word of the question.
# Below: each page's score, with its letter.

# %%
explanation = reranker.explain(QUESTION, found, first_stage=index)
picture = explanation.draw()
picture.thumbnail((1000, 1600))
picture

# %% [markdown]
# The best page, closer:

# %%
best = explanation.draw_reading(explanation.best[0])
best.crop((0, 0, best.width, best.height // 2))

# %% [markdown]
# `llama_index_ziprerank.report.write_report(explanation, "out.html")` writes the same as a page for the browser; on the
# command line it is `ziprerank ask … --report out.html`.
#
# ## Measure it on the manual's own outline
#
# The outline says on which page each heading stands: labels that nobody of us wrote. `from_manual` makes questions of it.
# The reranker's `top_n` is as deep as the list here, for what it cuts off counts as missed.

# %%
from llama_index_ziprerank.evaluators import PageRetrievalEvaluator, RetrievalDataset, page_key

dataset = RetrievalDataset.from_manual(MANUAL, kinds=["heading"], count=15)
deep = ZipRerankPostprocessor(model="nano", top_n=20)
report = await PageRetrievalEvaluator(index.as_retriever(20), [deep], key=page_key).aevaluate(dataset)
print(report)

# %% [markdown]
# Look at the intervals before you believe a gain: few questions give wide ones, and one that begins at 0, as here, shows
# little. The model card of `nano` has the figures of larger sets.
# `ziprerank evaluate manuals` does the same for whole manuals, from the shell.
#
# ## Swap nano for the real models
#
# Only the names change. The reranker takes some 17 GB in bfloat16, so you want a GPU of 24 GB. Not run here.
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
engine = index.as_query_engine(llm=llm, similarity_top_k=20, node_postprocessors=[reranker])
answer = engine.query(QUESTION)
print("answer:", answer)
print("from pages:", [node.metadata["page_label"] for node in answer.source_nodes])

# %% [markdown]
# ## In a chat engine
#
# LlamaIndex's `ContextChatEngine` hands the LLM the pages' text; its postprocessors still see the images.

# %%
from llama_index.core.chat_engine import ContextChatEngine

chat = ContextChatEngine.from_defaults(
    index.as_retriever(similarity_top_k=20), llm=MockLLM(max_tokens=6), node_postprocessors=[reranker]
)
print("from pages:", [node.metadata["page_label"] for node in chat.chat(QUESTION).source_nodes])

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
        nodes = await index.as_retriever(similarity_top_k=20).aretrieve(event.question)
        return Candidates(question=event.question, nodes=nodes)

    @step
    async def rerank(self, event: Candidates) -> StopEvent:
        best = await reranker.apostprocess_nodes(event.nodes, query_str=event.question)
        return StopEvent(result=[node_title(node.node) for node in best])


await FindPages(timeout=600).run(question=QUESTION)

# %% [markdown]
# ## Keep it
#
# With `persist_dir="manual.index"` the index stays on the disk; `ColPaliIndex.load("manual.index")` opens it again. This
# one lies in a temporary folder, which `close` removes.

# %%
index.close()
