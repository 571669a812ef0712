"""Index a PDF, ask it, rerank, save, load, with every way to the network forbidden: ``offline_round.py PDF DIR``.

What is unpickled on the way is written down too. Nothing tells the Hub's client that it is offline. At the end a name
on the Hub is asked for, to see that the guard would have seen a call.
"""

import json
import os
import pickle
import sys
from pathlib import Path

FORBIDDEN = ("socket.connect", "socket.getaddrinfo", "socket.gethostbyname", "socket.sendto", "socket.sendmsg")
attempts: list[str] = []
unpickled: list[str] = []


class Forbidden(BaseException):
    """No ``except Exception`` on the way swallows it."""


def guard(event: str, arguments: tuple[object, ...]) -> None:
    if event in FORBIDDEN:
        attempts.append(f"{event} {arguments[-1] if event == 'socket.connect' else arguments[0]}")
        raise Forbidden(attempts[-1])
    if event == "pickle.find_class":
        unpickled.append(".".join(map(str, arguments)))


def main(pdf: str, folder: Path) -> None:
    for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"):
        os.environ.pop(name, None)
    os.environ["HF_HOME"] = str(folder / "hub")  # empty: nothing is found there
    sys.addaudithook(guard)

    from llama_index.core.llms import MockLLM

    from llama_index_ziprerank import ColPaliIndex, PDFPageReader, ZipRerankPostprocessor

    reranker = ZipRerankPostprocessor(model="nano", top_n=2)
    with ColPaliIndex.from_documents(PDFPageReader(dpi=50).load_data(pdf), persist_dir=folder / "index") as index:
        index.persist(folder / "copy")
    with ColPaliIndex.load(folder / "copy") as index:
        engine = index.as_query_engine(MockLLM(is_chat_model=True), 4, [reranker])
        found = len(engine.query("How are polar grids drawn?").source_nodes)
    asked, found_pickled = list(attempts), list(unpickled)
    pickle.loads(pickle.dumps(Path))  # to see that the guard would have seen it
    try:
        ColPaliIndex.from_documents([], model="nobody/such-a-model")
    except Forbidden:
        pass
    report = {"found": found, "asked": asked, "asked when a name is given": attempts[len(asked) :]}
    print(json.dumps({**report, "unpickled": found_pickled, "seen": unpickled[len(found_pickled) :]}))


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
