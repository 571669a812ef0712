"""Why a page got its rank: which of its visual tokens the reranker read, and what its score is.

Ranks as `ListwiseReranker.rerank` does, then repeats, page by page, the comparison by which `pruning.py` drops visual
tokens. The last link of the chain. Letters: P visual tokens of a page, R rows and C columns of them (P = R * C), T text
tokens, D width of the language model.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from PIL import Image

from llama_index_ziprerank.pages.charts import Bar, bar_chart
from llama_index_ziprerank.pages.contact_sheet import Tile, contact_sheet
from llama_index_ziprerank.pages.overlay import draw_patches, stack
from llama_index_ziprerank.pages.patch_map import PatchMap, Scale
from llama_index_ziprerank.reranking.features import PageFeatures
from llama_index_ziprerank.reranking.inputs import build_ranking_prompt
from llama_index_ziprerank.reranking.options import RankingOptions
from llama_index_ziprerank.reranking.page_keys import PageFile, PageSource
from llama_index_ziprerank.reranking.permutation import IDENTIFIERS
from llama_index_ziprerank.reranking.prompt import check_query
from llama_index_ziprerank.reranking.pruning import keep_best, score_patches
from llama_index_ziprerank.reranking.ranking import Ranking
from llama_index_ziprerank.reranking.reranker import ListwiseReranker

DrawFirstStage = Callable[[Image.Image], PatchMap | None]
"""What the first stage saw on a page; None where its model has no grid of patches."""


@dataclass(frozen=True, eq=False)
class Candidate:
    """A page as the first stage hands it on."""

    title: str
    """How a person calls the page: its number, its file."""
    page: PageSource
    score: float | None = None
    """The first stage's."""


@dataclass(frozen=True, eq=False)
class PageExplanation:
    """One page: where it came from, where it went, and what of it was read. Ranks count from 1."""

    title: str
    page: PageSource
    rank: int
    rank_before: int
    letter: str | None
    """The identifier whose logit scored the page; None when it was read in several windows, each with its own."""
    probability: float
    """As `Ranking.scores`."""
    logit: float
    score_before: float | None
    """The first stage's."""
    reading: PatchMap
    """Of each visual token: its best cosine with a token of the query (-1 to 1), and whether it was kept.

    These are the tokens at the first side, where pages are read at several.
    With ``pruning="prompt"`` tokens are kept by their likeness to the whole prompt, not by the values given here.
    """
    first_stage: PatchMap | None = None
    """Of each patch of the first stage: its best similarity to the question, and whether MaxSim counted it. None beyond
    the best pages, without a first stage, and where its model has no grid of patches."""

    @cached_property
    def image(self) -> Image.Image:
        """The page's picture, decoded on first use."""
        return self.page.image() if isinstance(self.page, PageFile) else self.page

    @property
    def kept(self) -> int:
        """Visual tokens that the language model read."""
        return int(self.reading.chosen.sum())


@dataclass(frozen=True, eq=False)
class Explanation:
    """A ranking, and what can be seen of its reasons."""

    query: str
    model: str
    options: RankingOptions
    pages: tuple[PageExplanation, ...]
    """All candidates, best first."""
    top_n: int
    """How many of them were asked for."""
    sequence_length: int
    """Tokens that the language model read, summed over windows, their orders and sides."""
    visual_tokens: int
    """How many of these were visual tokens."""
    vision_seconds: float
    """Time of the vision tower; near 0 when the pages' features were at hand."""
    language_seconds: float
    """Time of the prompt, the pruning and the language model."""

    @property
    def best(self) -> tuple[PageExplanation, ...]:
        """The pages that were asked for, best first."""
        return self.pages[: self.top_n]

    @cached_property
    def reading_scale(self) -> Scale:
        """The scale of all drawings of what was read."""
        return Scale.over(page.reading for page in self.pages)

    def draw_reading(self, page: PageExplanation) -> Image.Image:
        """Draw a page: warm where it looks like the query, veiled where the language model did not read it."""
        return draw_patches(page.image, page.reading, self.reading_scale, "read")

    def draw_first_stage(self, page: PageExplanation) -> Image.Image | None:
        """Draw a page: warm where the first stage saw the question, framed where MaxSim counted it; None without map.

        A page has a scale of its own: similarities of the first stage are taken relative to their page.
        """
        if page.first_stage is None:
            return None
        return draw_patches(page.image, page.first_stage, Scale.over([page.first_stage]), "matched")

    def draw_letters(self) -> Image.Image:
        """Draw the scores of all candidates as a bar chart, best first."""
        bars = [Bar(f"{page.rank}   {page.letter or ''}   {page.title}", page.probability) for page in self.pages]
        return bar_chart("Score of each page, with its letter", bars)

    def draw(self) -> Image.Image:
        """Draw everything in one picture: what was read of the best pages, what the first stage saw, all letters."""
        read = [(page, self.draw_reading(page)) for page in self.best]
        matched = [(page, picture) for page in self.best if (picture := self.draw_first_stage(page))]
        parts = [contact_sheet(f"What the reranker read: {self.query}", [_tile(*pair) for pair in read])]
        if matched:
            parts.append(contact_sheet("What the first stage matched", [_tile(*pair) for pair in matched]))
        return stack([*parts, self.draw_letters()])


def explain(
    reranker: ListwiseReranker,
    query: str,
    candidates: Sequence[Candidate],
    options: RankingOptions,
    *,
    top_n: int = 5,
    draw_first_stage: DrawFirstStage | None = None,
) -> Explanation:
    """Rank candidates and tell what the ranking rests on; errors as `ListwiseReranker.rerank`.

    ``draw_first_stage`` is called for the best ``top_n`` pages alone, since it may encode each of them anew.
    """
    check_query(query)
    started = time.perf_counter()
    features = reranker.encode_pages([candidate.page for candidate in candidates])
    seen = time.perf_counter()
    scores = [candidate.score for candidate in candidates]
    ranking = reranker.rerank(query, features, first_stage_scores=scores, **vars(options))
    ranked = time.perf_counter()
    pages = []
    for rank, i in enumerate(ranking.order, start=1):
        reading = read_page(reranker, query, features[i], options, min(options.window, len(candidates)))
        page = _page(candidates[i], ranking, options, rank, i, reading)
        if draw_first_stage is not None and rank <= top_n:
            page = replace(page, first_stage=draw_first_stage(page.image))
        pages.append(page)
    return Explanation(
        query=query,
        model=reranker.name,
        options=options,
        pages=tuple(pages),
        top_n=top_n,
        sequence_length=ranking.sequence_length,
        visual_tokens=ranking.visual_tokens,
        vision_seconds=seen - started,
        language_seconds=ranked - seen,
    )


@torch.inference_mode()
def read_page(
    reranker: ListwiseReranker,
    query: str,
    page: PageFeatures,
    options: RankingOptions,
    pages_in_window: int,
) -> PatchMap:
    """Map a page's visual tokens: (R, C) best cosine with a token of the query, (R, C) whether it is kept.

    The words of the prompt, and so what ``pruning="prompt"`` keeps, depend on how many pages share the window: a list
    longer than one may be ranked with a smaller window too, which can keep a few other tokens than are shown.
    Where the tokenizer finds no token in the query, all cosines are 0.
    """
    prompt = build_ranking_prompt(reranker.processor, query, [page.grid] * pages_in_window)
    similarity = _likeness(reranker, page, prompt.query_ids)  # (P,)
    kept = torch.ones_like(similarity, dtype=torch.bool)
    if options.keep_ratio < 1:
        deciding = similarity if options.pruning == "query" else _likeness(reranker, page, prompt.text_ids)
        kept = torch.zeros_like(kept)
        kept[keep_best(deciding, [len(page.merged)], options.keep_ratio)] = True
    merge = reranker.processor.image_processor.merge_size
    shape = (page.grid[1] // merge, page.grid[2] // merge)  # (R, C)
    return PatchMap(similarity.reshape(shape).cpu().numpy(), kept.reshape(shape).cpu().numpy())


def _likeness(reranker: ListwiseReranker, page: PageFeatures, text_ids: torch.Tensor) -> torch.Tensor:
    """Compare visual tokens with text as pruning does: (P, D), (T,) -> (P,) float32."""
    if not len(text_ids):
        return page.merged.new_zeros(len(page.merged), dtype=torch.float32)
    text = reranker.model.get_input_embeddings()(text_ids.to(page.merged.device))  # (T, D)
    return score_patches(page.merged, text)


def _tile(page: PageExplanation, picture: Image.Image) -> Tile:
    return Tile(picture, page.rank, page.rank_before, f"{page.probability:.1%} · {page.title}")


def _page(
    candidate: Candidate, ranking: Ranking, options: RankingOptions, rank: int, i: int, reading: PatchMap
) -> PageExplanation:
    read_once = len(ranking.order) <= options.window and options.permutations == 1
    return PageExplanation(
        title=candidate.title,
        page=candidate.page,
        rank=rank,
        rank_before=i + 1,
        letter=IDENTIFIERS[i] if read_once else None,
        probability=ranking.scores[i],
        logit=ranking.logits[i],
        score_before=candidate.score,
        reading=reading,
    )
