"""Several processes at one index at once: ``python race_rounds.py FOLDER PROCESSES ROUNDS``."""

import json
import sys
from pathlib import Path
from typing import Any

from forked import Forked, Say, check_no_leftovers, contents, in_a_fork, page, tiny_encoder

from llama_index_ziprerank.indices import ColPaliIndex
from llama_index_ziprerank.retrieval.store import StoreError

PAGES = {f"page {number}": 1 for number in range(4)}


def documents() -> list[Any]:
    return [page("a.pdf", name, version) for name, version in PAGES.items()]


def whole(folder: Path, encoder: Any, say: Say) -> None:
    with ColPaliIndex.load(folder, model=encoder) as index:
        check_no_leftovers(index)
        say(contents(index))


def race(folder: Path, encoder: Any, processes: int) -> tuple[int, int]:
    """Build one index, then copy another over one folder, from all processes; return who was served and who refused."""

    def build(say: Say) -> None:
        try:
            ColPaliIndex.from_documents(documents(), encoder, folder / "index").close()
            say("served")
        except StoreError as error:
            assert "is open elsewhere" in str(error), error
            say("refused")

    def copy(say: Say) -> None:
        try:
            with ColPaliIndex.from_documents(documents(), encoder) as own:
                own.persist(folder / "copy")
            say("served")
        except StoreError as error:
            assert "is open elsewhere" in str(error), error
            say("refused")

    outcomes = []
    for work, target in ((build, "index"), (copy, "copy")):
        racing = [Forked(work) for _ in range(processes)]
        for code, said in [one.wait() for one in racing]:
            assert code == 0, said
            outcomes += said
        code, said = in_a_fork(lambda say, target=target: whole(folder / target, encoder, say))
        assert (code, said) == (0, [PAGES]), said
    assert {path.name for path in folder.iterdir()} == {"index", "copy"}
    return outcomes.count("served"), outcomes.count("refused")


def main(folder: Path, processes: int, rounds: int) -> None:
    encoder = tiny_encoder(folder / "model")
    served = refused = 0
    for number in range(rounds):
        (folder / str(number)).mkdir()
        more_served, more_refused = race(folder / str(number), encoder, processes)
        served, refused = served + more_served, refused + more_refused
    print(json.dumps({"served": served, "refused": refused}))


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
