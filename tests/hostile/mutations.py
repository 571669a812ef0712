"""Seeded damage: the same seed and source give the same broken PDF."""

import re
from collections.abc import Callable, Iterator, Mapping
from random import Random

_OBJECT = re.compile(rb"\d+ \d+ obj\b.*?\bendobj", re.DOTALL)
_REFERENCE = re.compile(rb"\b(\d+) 0 R\b")
_NUMBER = re.compile(rb"(?<=[\s\[(/])-?\d+(?:\.\d+)?(?=[\s\]>/])")
_NAME = re.compile(rb"/[A-Za-z]+")
_EXTREMES = (b"0", b"-1", b"1e999", b"NaN", b"999999999", b"4294967296", b"99999999999999999999", b"0.0000001", b"null")

Mutation = Callable[[bytes, Random], bytes]


def bit_flips(pdf: bytes, random: Random) -> bytes:
    """Turn over 1 to 64 bits."""
    damaged = bytearray(pdf)
    for _ in range(random.randint(1, 64)):
        damaged[random.randrange(len(damaged))] ^= 1 << random.randrange(8)
    return bytes(damaged)


def garbage(pdf: bytes, random: Random) -> bytes:
    """Write random bytes over a stretch."""
    start, length = random.randrange(len(pdf)), random.randint(1, 400)
    return pdf[:start] + random.randbytes(length) + pdf[start + length :]


def truncation(pdf: bytes, random: Random) -> bytes:
    """Cut the end off."""
    return pdf[: random.randint(9, len(pdf) - 1)]


def missing_piece(pdf: bytes, random: Random) -> bytes:
    """Cut a stretch out of the middle."""
    start = random.randrange(9, len(pdf))
    return pdf[:start] + pdf[start + random.randint(1, len(pdf) // 4) :]


def doubled_piece(pdf: bytes, random: Random) -> bytes:
    """Write a stretch twice."""
    start = random.randrange(9, len(pdf))
    end = start + random.randint(1, len(pdf) // 4)
    return pdf[:end] + pdf[start:end] + pdf[end:]


def swapped_objects(pdf: bytes, random: Random) -> bytes:
    """Exchange what two objects hold, and leave their numbers."""
    places = [match.span() for match in _OBJECT.finditer(pdf)]
    if len(places) < 2:
        return truncation(pdf, random)
    (a, b), (c, d) = sorted(random.sample(places, 2))
    one, other = pdf[a:b].split(b"obj", 1), pdf[c:d].split(b"obj", 1)
    return pdf[:a] + one[0] + b"obj" + other[1] + pdf[b:c] + other[0] + b"obj" + one[1] + pdf[d:]


def stray_references(pdf: bytes, random: Random) -> bytes:
    """Point references anywhere: cycles, wrong types, objects that are not there."""
    highest = max((int(match[1]) for match in _REFERENCE.finditer(pdf)), default=9)
    return _some(_REFERENCE, pdf, random, lambda found: b"%d 0 R" % random.randint(0, highest + 2))


def extreme_numbers(pdf: bytes, random: Random) -> bytes:
    """Put zero, negative, enormous and impossible numbers in the place of others."""
    return _some(_NUMBER, pdf, random, lambda found: random.choice(_EXTREMES))


def exchanged_names(pdf: bytes, random: Random) -> bytes:
    """Put names of the file in the place of others: other filters, types and keys."""
    names = sorted(set(_NAME.findall(pdf))) or [b"/X"]
    return _some(_NAME, pdf, random, lambda found: random.choice(names))


MUTATIONS: Mapping[str, Mutation] = {
    mutation.__name__.replace("_", " "): mutation
    for mutation in (
        bit_flips,
        garbage,
        truncation,
        missing_piece,
        doubled_piece,
        swapped_objects,
        stray_references,
        extreme_numbers,
        exchanged_names,
    )
}


def mutated(sources: Mapping[str, bytes], count: int, seed: int) -> Iterator[tuple[str, str, bytes]]:
    """Yield `count` broken PDFs as (kind, name, bytes); every kind takes its turn, sources are drawn."""
    names, kinds = sorted(sources), list(MUTATIONS)
    for number in range(count):
        random = Random(f"{seed}-{number}")
        kind, source = kinds[number % len(kinds)], random.choice(names)
        yield kind, f"{kind}-{number:05d}-of-{source}".replace(" ", "-"), MUTATIONS[kind](sources[source], random)


def _some(pattern: re.Pattern[bytes], pdf: bytes, random: Random, replacement: Callable[[bytes], bytes]) -> bytes:
    """Replace 1 to 8 of the places where `pattern` is found."""
    places = [match.span() for match in pattern.finditer(pdf)]
    for start, end in sorted(random.sample(places, min(len(places), random.randint(1, 8))), reverse=True):
        pdf = pdf[:start] + replacement(pdf[start:end]) + pdf[end:]
    return pdf
