"""Images of pages that were replaced: they stay a while, for the questions that have found the pages and not yet read
them.
"""

import time
from collections import deque
from dataclasses import dataclass
from itertools import takewhile

GRACE = 600.0
"""Seconds that a replaced image stays, at least: the slowest question takes less."""


@dataclass(frozen=True)
class _Replaced:
    page_id: str
    image_name: str
    since: float
    """By ``time.monotonic``."""


class ReplacedImages:
    """Remembers them in this process, oldest first; whoever owns the folder removes what is due."""

    def __init__(self) -> None:
        self._waiting: deque[_Replaced] = deque()

    @property
    def names(self) -> list[str]:
        """The images that wait."""
        return [one.image_name for one in self._waiting]

    def note(self, page_id: str, image_name: str | None) -> None:
        """Remember an image that its page has no more; None, of a page without one, is nothing to remember."""
        if image_name is not None:
            self._waiting.append(_Replaced(page_id, image_name, time.monotonic()))

    def due(self, grace: float) -> list[tuple[str, str]]:
        """Return page and image of all that have waited for ``grace`` seconds; the page may have it again by now."""
        now = time.monotonic()
        return [(one.page_id, one.image_name) for one in takewhile(lambda one: now - one.since >= grace, self._waiting)]

    def forget(self, count: int) -> None:
        """Forget the first ``count`` that were due, once their images are gone."""
        for _ in range(count):
            self._waiting.popleft()
