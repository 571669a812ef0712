"""Headings put as natural questions, by fixed rules that look at nothing but the heading.

1. "How to draw a graph" and headings that begin with a verb of the table below, as a gerund or an imperative
   ("Drawing a graph", "Draw a graph"), become "How do I draw a graph?".
2. Any other heading becomes "What are …?" where its last word looks like a plural, else "What is the …?".
3. A capital letter at the start of a word is lowered, unless the word has another capital, a digit or an underscore.
4. A heading makes no question when the rules would make a bad one of it: with marks of code, mathematics or a second
   part (``:``, brackets, operators), commas or "and", all in capitals, of more than `MOST_WORDS` words, beginning with
   a gerund that the table lacks or with a preposition, or a question already.
"""

import re

MOST_WORDS = 9

_BASE_OF = {
    "adding": "add", "applying": "apply", "building": "build", "calling": "call", "changing": "change",
    "checking": "check", "choosing": "choose", "combining": "combine", "compiling": "compile",
    "computing": "compute", "configuring": "configure", "controlling": "control", "converting": "convert",
    "creating": "create", "customizing": "customize", "debugging": "debug", "defining": "define",
    "deleting": "delete", "designing": "design", "displaying": "display", "drawing": "draw", "editing": "edit",
    "enabling": "enable", "exporting": "export", "extracting": "extract", "fetching": "fetch",
    "generating": "generate", "getting": "get", "handling": "handle", "importing": "import",
    "including": "include", "installing": "install", "invoking": "invoke", "joining": "join",
    "loading": "load", "making": "make", "managing": "manage", "merging": "merge", "moving": "move",
    "opening": "open", "painting": "paint", "plotting": "plot", "preparing": "prepare", "printing": "print",
    "reading": "read", "removing": "remove", "renaming": "rename", "replacing": "replace", "reporting": "report",
    "restoring": "restore", "retrieving": "retrieve", "running": "run", "saving": "save", "scaling": "scale",
    "selecting": "select", "sending": "send", "setting": "set", "solving": "solve", "specifying": "specify",
    "starting": "start", "switching": "switch", "testing": "test", "translating": "translate",
    "updating": "update", "upgrading": "upgrade", "using": "use", "viewing": "view", "working": "work",
    "writing": "write",
}  # fmt: skip
_AMBIGUOUS = {"address", "change", "check", "control", "debug", "design", "display", "import", "include", "move",
              "plot", "print", "report", "scale", "set", "switch", "test", "update", "use", "view", "work"}  # fmt: skip
"""Imperatives that are as often nouns ("Set operations", "Test suite")."""
_BASES = set(_BASE_OF.values()) - _AMBIGUOUS
_NO_NOUN = {"about", "for", "from", "how", "in", "on", "what", "when", "where", "which", "who", "why", "with"}
_CODE = re.compile(r"[:;,()\[\]{}<>=+*/\\|~^%$#@&\"“”?!]|\.\S|--")


def as_question(title: str) -> str | None:
    """Return a heading (without its number) as a question; None where no rule fits."""
    heard = title.split()
    if not 2 <= len(heard) <= MOST_WORDS or _CODE.search(title) or title.isupper() or {"and", "or"} & set(heard):
        return None
    spoken = [_lowered(word) for word in heard]
    first, rest = spoken[0], " ".join(spoken[1:])
    if first == "how" and spoken[1] == "to" and len(spoken) > 2:
        return f"How do I {' '.join(spoken[2:])}?"
    if first in _BASE_OF or first in _BASES:
        return f"How do I {_BASE_OF.get(first, first)} {rest}?"
    if first in _NO_NOUN or first.endswith("ing"):
        return None
    is_plural = re.search(r"[^\W\d_]{2}(?<![sui])s$", spoken[-1]) is not None
    verb = "are" if is_plural else "is" if first in {"a", "an", "the"} else "is the"
    return f"What {verb} {' '.join(spoken)}?"


def _lowered(word: str) -> str:
    """A word as it is spelled inside a sentence: "Graph" is lowered, "PostScript", "AES" and "Aes2" stay."""
    return word.lower() if re.fullmatch(r"[A-Z][a-z'’-]*[.,]?", word) else word
