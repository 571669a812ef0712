"""Which dimensions of nano's residual stream mean what. D = 256: content first, then a letter each, then marks.

Content is what tells words apart. Pixels and words never write into the rest, so that the ranker's path through it
(circuit.py) stays readable: whoever looks at a page can take its letter along without touching what it reads.
"""

from llama_index_ziprerank.reranking.permutation import IDENTIFIERS
from llama_index_ziprerank.training.nano.model import WIDTH

EMBEDDING_NORM = 4.0
"""Length of the token embeddings and, on average, of the merged visual tokens."""

VISUAL, IDENTIFIER, OPENING, WEIGHT, FIRST, ANY, MATCHED, OVER = range(-1, -9, -1)
MARKS = list(range(-8, 0))
"""Dimensions for: pixels, identifiers, the opening bracket, a word's rarity, the first token of all, any token, what a
visual token shows of the question, text behind the question. The reader leaves them free."""

MARK = 2.0
"""Value of a mark."""

CONTENT = WIDTH - len(MARKS) - len(IDENTIFIERS)
"""Dimensions of content, the most telling first."""

LETTERS = slice(CONTENT, CONTENT + len(IDENTIFIERS))
"""One dimension for each letter A to T."""

RESERVED = slice(CONTENT, WIDTH)
"""All that is not content."""
