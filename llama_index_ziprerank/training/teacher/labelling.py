"""Many queries at a time through the teacher, into a file that an interrupted run continues."""

import asyncio
import logging
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from PIL import Image

from llama_index_ziprerank.training.teacher.label_file import LabelFile
from llama_index_ziprerank.training.teacher.queries import Id, TeacherQuery
from llama_index_ziprerank.training.teacher.teacher import Teacher, TeacherRanking

logger = logging.getLogger(__name__)


class TeacherStoppedError(RuntimeError):
    """Too many queries in a row got no ranking; those made before are safe, and another run goes on after them."""


async def label_queries(
    queries: Iterable[TeacherQuery],
    image: Callable[[Id], Image.Image],
    teacher: Teacher,
    labels: LabelFile,
    on_done: Callable[[], object] = lambda: None,
) -> None:
    """Rank every query that `labels` does not hold yet; a row is written when its answer comes, in that order.

    A query that gets no ranking is logged as a warning and left out, for a later run. `teacher.totals` counts.

    Args:
        queries: each query once; read as they are needed.
        image: finds the picture of a page; called from threads.
        on_done: called after each query, also one that failed or was there already.

    Raises:
        TeacherStoppedError: `failures_in_a_row` queries got no ranking.
        ValueError: `labels` holds a ranking of a query with other words or candidates.
        OSError: a ranking cannot be written.
    """
    run = _Run(iter(queries), image, teacher, labels, on_done)
    workers = [asyncio.create_task(run.work()) for _ in range(teacher.settings.concurrency)]
    try:
        await asyncio.gather(*workers)
    finally:
        for worker in workers:
            worker.cancel()
        await asyncio.gather(*workers, return_exceptions=True)


@dataclass
class _Run:
    """What the workers share."""

    waiting: Iterator[TeacherQuery]
    image: Callable[[Id], Image.Image]
    teacher: Teacher
    labels: LabelFile
    on_done: Callable[[], object]
    failures_in_a_row: int = 0

    async def work(self) -> None:
        totals = self.teacher.totals
        for query in self.waiting:
            if query in self.labels:
                totals.already_labelled += 1
            elif ranking := await self._rank(query):
                self.labels.add(query, ranking.order, ranking.response)
                totals.labelled += 1
            self.on_done()

    async def _rank(self, query: TeacherQuery) -> TeacherRanking | None:
        try:
            images = await asyncio.to_thread(lambda: [self.image(page) for page in query.candidates])
            ranking = await self.teacher.rank(query.query, images)
        except Exception as error:  # any callable raises anything: one failure costs one query, many in a row the run
            self._count_failure(query, error)
            return None
        self.failures_in_a_row = 0
        return ranking

    def _count_failure(self, query: TeacherQuery, error: Exception) -> None:
        self.teacher.totals.failed += 1
        self.failures_in_a_row += 1
        reason = f"{query.name} got no ranking: {error or type(error).__name__}"
        if self.failures_in_a_row >= self.teacher.settings.failures_in_a_row:
            raise TeacherStoppedError(f"{self.failures_in_a_row} queries failed in a row; {reason}") from error
        logger.warning("%s", reason)
