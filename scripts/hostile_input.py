"""Feed hostile PDFs to the reader and report what became of them: real odd ones, crafted ones, and damaged copies.

    python scripts/hostile_input.py                # 1,000 crafted and damaged, and the real ones of four packages
    python scripts/hostile_input.py --inputs 10000 --seed 1 --no-real
    python scripts/hostile_input.py --keep violations   # keep the files that broke the law

The law: pages or one clear error, in bounded time and memory, and the reading process lives. Exits with 1 if broken.
"""

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "hostile"))

from crafted_pdfs import CRAFTED  # noqa: E402
from good_pdfs import GOOD  # noqa: E402
from mutations import mutated  # noqa: E402
from odd_pdfs import CACHE, odd_pdfs  # noqa: E402
from watched import HostilePdf, Tally, outcomes  # noqa: E402

_LARGE = 500_000  # bytes; a larger real file is read as it is, but not damaged


def inputs(count: int, seed: int, cache: Path | None) -> Iterator[HostilePdf]:
    """Yield the real files, the crafted ones, and damaged copies until `count` are not real."""
    sources = {name: make() for name, make in GOOD.items()}
    for name, content in odd_pdfs(cache) if cache else ():
        yield HostilePdf("real", name, content)
        if len(content) < _LARGE:
            sources[name.replace("/", "-")] = content
    for name, make in CRAFTED.items():
        yield HostilePdf("crafted", name, make())
    for kind, name, content in mutated(sources, count - len(CRAFTED), seed):
        yield HostilePdf(kind, name, content)


def main() -> int:
    """Read the choices, feed the files, print the report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--inputs", type=int, default=1000, help="files that are crafted or damaged")
    parser.add_argument("--seed", type=int, default=7, help="of the damage")
    parser.add_argument("--no-real", action="store_true", help="do without PyPI")
    parser.add_argument("--cache", type=Path, default=CACHE, help="folder for the downloaded packages")
    parser.add_argument("--keep", type=Path, help="folder for files that broke the law")
    choices = parser.parse_args()
    tally = Tally()
    for pdf, outcome in outcomes(inputs(choices.inputs, choices.seed, None if choices.no_real else choices.cache)):
        tally.add(pdf, outcome)
        if outcome.result == "violation":
            print(f"VIOLATION {pdf.kind}, {pdf.name}: {outcome.detail} {outcome.message}", flush=True)
            if choices.keep:
                choices.keep.mkdir(parents=True, exist_ok=True)
                (choices.keep / f"{pdf.name.replace('/', '-')}.pdf").write_bytes(pdf.content)
    print(tally.report())
    return 1 if tally.violations else 0


if __name__ == "__main__":
    sys.exit(main())
