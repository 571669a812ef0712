"""kill -9 at random moments of work on an index, then look: ``python kill_rounds.py FOLDER ROUNDS SEED``.

Every round a process opens the index (or builds it), and works off a few operations until it is killed. The next one
opens what is left: every page that no operation was touching is there as it was, every other is whole, in its old or
its new version, or absent; doing the interrupted operation again gives what it would have given.
"""

import json
import random
import sys
from pathlib import Path

from forked import Forked, Say, check_no_leftovers, contents, in_a_fork, page, tiny_encoder
from llama_index.core.schema import Document, NodeWithScore

from llama_index_ziprerank.indices import ColPaliIndex
from llama_index_ziprerank.postprocessors import ZipRerankPostprocessor
from llama_index_ziprerank.reranking import ListwiseReranker
from llama_index_ziprerank.retrieval.encoder import MultiVectorEncoder

PARITY = Path(__file__).parents[1] / "data" / "parity" / "checkpoint"
FILES = ("a.pdf", "b.pdf", "c.pdf")
_KINDS = ("insert", "refresh", "delete", "persist", "warm")
_TAKES = {"build": 0.3, "insert": 0.05, "refresh": 0.04, "delete": 0.001, "persist": 0.3, "warm": 0.07}
"""Seconds that an operation takes, about; what is started last is killed within them, or in what follows."""
Operation = tuple[str, str, int]
"""What is done, to which file, in which version."""
Pages = dict[str, int]
Models = tuple[MultiVectorEncoder, ListwiseReranker]


def names(file: str, version: int) -> list[str]:
    """The pages of a file: a new version has other pages (ids are made of the bytes) and shares none but one."""
    return [f"{file} cover", *(f"{file} {version} {number}" for number in range(1 + version % 4))]


def documents(file: str, version: int) -> list[Document]:
    return [page(file, name, version) for name in names(file, version)]


def after(pages: Pages, operation: Operation) -> Pages:
    """What the index holds when the operation is done."""
    kind, file, version = operation
    if kind in ("persist", "warm"):
        return pages
    if kind in ("delete", "refresh"):
        pages = {name: there for name, there in pages.items() if not name.startswith(file)}
    return pages if kind == "delete" else {**pages, **dict.fromkeys(names(file, version), version)}


def do(index: ColPaliIndex, operation: Operation, copy: Path, reranker: ListwiseReranker) -> None:
    kind, file, version = operation
    if kind == "insert":
        for document in documents(file, version):
            index.insert(document)
    elif kind == "refresh":
        index.refresh_ref_docs(documents(file, version))
    elif kind == "delete":
        index.delete_file(file)
    elif kind == "persist":
        index.persist(copy)
    elif kind == "warm":
        warm(index, reranker)


def warm(index: ColPaliIndex, reranker: ListwiseReranker) -> ZipRerankPostprocessor:
    """Compute and keep the reranker's vision features of all pages."""
    keeper = ZipRerankPostprocessor.from_reranker(reranker)
    keeper.use_cache_dir(index.feature_dir)
    keeper.cache_pages(index.nodes())
    return keeper


def check_features(index: ColPaliIndex, reranker: ListwiseReranker) -> None:
    """Answers from kept features are those without."""
    nodes = index.as_retriever(similarity_top_k=4).retrieve("toner")
    warm(index, reranker)
    kept = ranked(reranker, nodes)
    reranker.cache = None
    fresh = ranked(reranker, nodes)
    assert kept.keys() == fresh.keys()
    assert all(abs(kept[name] - fresh[name]) < 1e-4 for name in fresh), "kept features are of another page"


def ranked(reranker: ListwiseReranker, nodes: list[NodeWithScore]) -> dict[str, float]:
    found = ZipRerankPostprocessor.from_reranker(reranker).postprocess_nodes(nodes, query_str="toner")
    return {node.node.node_id: node.get_score() for node in found}


def one_round(folder: Path, models: Models, pages: Pages, done_before: int, rng: random.Random) -> tuple[Pages, str]:
    """Let a process work, kill it, look at what is left; return what is there now, and what was interrupted."""
    target, copy = folder / "index", folder / "copy"
    encoder, reranker = models
    operations = [(rng.choice(_KINDS), rng.choice(FILES), done_before + i) for i in range(12)]
    first: list[Operation] = [] if pages else [("insert", file, done_before) for file in FILES]

    def work(say: Say) -> None:
        if first:
            say("build")
            built = [document for _, file, version in first for document in documents(file, version)]
            index = ColPaliIndex.from_documents(built, encoder, target)
        else:
            index = ColPaliIndex.load(target, model=encoder)
        say("open")
        for number, operation in enumerate(operations):
            say(["begin", number])
            do(index, operation, copy, reranker)
            say(["end", number])
        index.close()

    child = Forked(work)
    if first and rng.random() < 0.8:
        child.kill(words=1, seconds=rng.random() * 1.3 * _TAKES["build"])
    else:
        place = rng.randrange(12)
        words = len(first[:1]) + 1 + 2 * place + 1  # build, open, begin and end of those before, begin
        child.kill(words, seconds=rng.random() * 1.3 * _TAKES[operations[place][0]])
    code, said = child.wait()
    assert code in (0, -9), said[-1]
    finished = sum(isinstance(word, list) and word[0] == "end" for word in said)
    begun = [*first, *operations[: sum(isinstance(word, list) and word[0] == "begin" for word in said)]]
    certain = [*(first if "open" in said else []), *operations[:finished]]
    for operation in certain:
        pages = after(pages, operation)
    pending = begun[len(certain) :]
    interrupted = "nothing" if code == 0 else ("build" if pending == first else pending[0][0] if pending else "opening")
    code, said = in_a_fork(lambda say: say(look(target, copy, models, pages, pending)))
    assert code == 0, (interrupted, said[-1])
    return said[0], interrupted


def look(target: Path, copy: Path, models: Models, certain: Pages, pending: list[Operation]) -> Pages:
    """Check what is left of the index, do again what was interrupted, check that too."""
    encoder, reranker = models
    expected = certain
    for operation in pending:
        expected = after(expected, operation)
    if not (target / "index.json").exists():
        assert not certain, "the index is gone"
        ColPaliIndex.from_documents([], encoder, target).close()
    with ColPaliIndex.load(target, model=encoder) as index:
        check_no_leftovers(index)
        left = contents(index)
        for name in {*certain, *expected, *left}:
            may_be = {certain.get(name), expected.get(name)} | ({None} if pending else set())
            untouched = certain.get(name) == expected.get(name) is not None
            assert left.get(name) in (may_be - {None} if untouched else may_be), f"{name} is {left.get(name)}: {may_be}"
        for operation in pending:
            do(index, operation, copy, reranker)
        assert contents(index) == expected, "doing it again does not finish the job"
        if index.feature_dir.is_dir() and expected:
            check_features(index, reranker)
    if (copy / "index.json").exists() or copy.with_name(".copy.ziprerank").exists():
        try:
            with ColPaliIndex.load(copy, model=encoder) as copied:
                check_no_leftovers(copied)
                contents(copied)
        except FileNotFoundError:
            assert not copy.exists()  # killed before the first copy was whole
    return expected


def main(folder: Path, rounds: int, seed: int) -> None:
    rng = random.Random(seed)
    models = tiny_encoder(folder / "model"), ListwiseReranker.from_pretrained(str(PARITY), device="cpu")
    pages: Pages = {}
    interrupted: dict[str, int] = {}
    number = 0
    wanted = {"build", *_KINDS} if rounds >= 50 else set()  # a long run goes on until every kind of work was hit
    while not wanted <= interrupted.keys() or sum(interrupted.values()) - interrupted.get("nothing", 0) < rounds:
        if number % 10 == 0:  # begin anew now and then: building is killed too
            base, pages = folder / str(number), {}
            base.mkdir()
        pages, kind = one_round(base, models, pages, 12 * number, rng)
        interrupted[kind] = interrupted.get(kind, 0) + 1
        number += 1
    print(json.dumps(interrupted))


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
