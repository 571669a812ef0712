"""A page in the browser to try things out: drop PDFs, ask, see what the reranker read (`ziprerank app`).

`desk.py` holds the documents and the models, `page.py` is what the browser shows. Gradio comes with the extra ``app``.
"""
