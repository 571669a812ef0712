"""What was found for one question."""

from dataclasses import dataclass


@dataclass(frozen=True)
class QuestionResult:
    """One question, the two rankings of its document's pages or layouts (from 0), and their recalls."""

    query_id: str
    document: str
    domain: str
    query: str
    rankings: dict[str, list[int]]
    recalls: dict[str, dict[str, float]]
    """System → metric → value."""
    seconds: float
    """For reranking, vision tower included where it saw a page for the first time."""
