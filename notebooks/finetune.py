# %% [markdown]
# # Fine-tune on your own PDFs
#
# One command turns PDF files into a reranker of your own: pages become questions (of outline and index, or written by an
# LLM), the first stage finds candidates, a teacher orders them, stage 2 learns the orders. A table compares before and
# after on questions whose headings were held out.
#
# Here the whole path runs on an eight-page extract in a few minutes on a CPU, with the text layer as teacher and three
# passes over a handful of lists. That shows the steps; it is far too little to make a model better.
# %%
import json
import subprocess
import sys
import tempfile
from pathlib import Path

from IPython.display import Markdown
from PIL import Image
from pypdf import PdfReader, PdfWriter

ROOT = next(folder for folder in [Path.cwd(), *Path.cwd().parents] if (folder / "demo").is_dir())
work = Path(tempfile.mkdtemp())
# %% [markdown]
# ## Your PDFs
#
# Bookmarks are what questions are made of. Pages 33 to 40 of the demo's manual, and their bookmarks:
# %%
whole = PdfReader(ROOT / "demo" / "gle-manual-chapters-4-9.pdf")
extract, first, last = PdfWriter(), 33, 40
for page in whole.pages[first - 1 : last]:
    extract.add_page(page)


def bookmarks(entries):
    for entry in entries:
        if isinstance(entry, list):
            yield from bookmarks(entry)
        else:
            yield entry.title, whole.get_destination_page_number(entry) + 1


for title, page in bookmarks(whole.outline):
    if first <= page <= last:
        extract.add_outline_item(title=title, page_number=page - first)
        print(page, title)
extract.write(work / "extract.pdf");
# %% [markdown]
# ## One command
#
# In a shell: `ziprerank finetune extract.pdf --output my-reranker`. Interrupted, the same command goes on where it stopped.
# With nano the learning rate is low, 1e-5: three times as much made it rank worse on a whole manual (training guide).
# %%
command = [str(Path(sys.executable).parent / "ziprerank"), "finetune", str(work / "extract.pdf")]
command += ["--output", str(work / "my-reranker")]
done = subprocess.run(command, capture_output=True, text=True)
assert done.returncode == 0, done.stderr[-2000:]
Markdown(done.stdout.replace("\n|", "\n\n|", 1).replace("|\nrecall", "|\n\nrecall"))
# %% [markdown]
# All pages of the extract compete; BM25 reads the PDF's own text. All four questions have their page first, before the
# training and after it. A handful of questions gives no figure to rely on, and a handful of steps may as well do harm:
# measure on questions of your own.
#
# ## What it learned from
#
# `work` in the output folder holds everything on the way. One of the lists: a heading as the question, and the teacher's
# order of the pages ("was" tells the first stage's).
# %%
from llama_index_ziprerank.pages.contact_sheet import Tile, contact_sheet

trail = work / "my-reranker" / "work"
lesson = [json.loads(line) for line in (trail / "lists.jsonl").read_text().splitlines()][1]
tiles = []
for rank, candidate in enumerate(lesson["order"][:5], start=1):
    caption = "the answer" if candidate in lesson["positives"] else ""
    tiles.append(Tile(Image.open(trail / lesson["pages"][candidate]), rank, candidate + 1, caption))
sheet = contact_sheet(f"Teacher's order: {lesson['query']}", tiles)
sheet.thumbnail((1000, 1000))
sheet
# %% [markdown]
# ## Use it
#
# The folder is a checkpoint like any other. Its config says which part of the visual tokens it was trained to read, and it
# ranks so.
# %%
from llama_index.core.schema import NodeWithScore

from llama_index_ziprerank import PDFPageReader, ZipRerankPostprocessor
from llama_index_ziprerank.nodes import document_to_page_node, node_title

nodes = [NodeWithScore(node=document_to_page_node(page)) for page in PDFPageReader().load_data(work / "extract.pdf")]
reranker = ZipRerankPostprocessor(model=str(work / "my-reranker"), top_n=3)
for node in reranker.postprocess_nodes(nodes, query_str="If-then-else"):
    print(f"{node.score:.3f}", node_title(node.node))
# %% [markdown]
# ## For real
#
# ```console
# $ ziprerank finetune manuals/*.pdf --output my-reranker --model mtri-admin/ZipRerank \
#       --retriever vidore/colqwen2-v1.0 --llm gpt-5-mini
# ```
#
# takes a GPU, a key in OPENAI_API_KEY (or `--api-base` of a server of your own) and a few hundred pages or more.
