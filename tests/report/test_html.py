import base64
import hashlib
import re
from dataclasses import replace
from html.parser import HTMLParser
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from llama_index_ziprerank.pages.patch_map import PatchMap
from llama_index_ziprerank.report import Run, render_findings, render_report, render_runs, render_shelf, write_report
from llama_index_ziprerank.reranking.explanation import Explanation, PageExplanation
from llama_index_ziprerank.reranking.ranking import RankingOptions

HOSTILE = "\"'><script>alert(1)</script><img src=x onerror=alert(2)>{{ 7 * 7 }}${1}</style></title><!-- &amp; \u202e"


def _page(rank: int, rank_before: int, title: str = "page 7", colour: str = "white") -> PageExplanation:
    reading = PatchMap(np.linspace(0, 1, 6, dtype=np.float32).reshape(3, 2), np.eye(3, 2, dtype=bool))
    return PageExplanation(
        title=title,
        page=Image.new("RGB", (60, 90), colour),
        rank=rank,
        rank_before=rank_before,
        letter="ABCDEF"[rank_before - 1],
        probability=1 / 2**rank,
        logit=-float(rank),
        score_before=None,
        reading=reading,
        first_stage=reading if rank <= 2 else None,
    )


@pytest.fixture
def explanation() -> Explanation:
    """Four candidates, of which the third and the first were the best two."""
    pages = (_page(1, 3), _page(2, 1), _page(3, 2), _page(4, 4))
    return Explanation("How?", "nano", RankingOptions(0.5, "query"), pages, 2, 900, 8, 1.5, 0.25)


class _Outline(HTMLParser):
    """Collects what a browser would act on."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str]] = []
        self.text = ""
        self.feed(page)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(name, value or "") for name, value in attrs]

    def handle_data(self, data: str) -> None:
        self.text += data


def _everywhere(explanation: Explanation, words: str) -> Explanation:
    return replace(
        explanation,
        query=words,
        model=words,
        pages=tuple(replace(page, title=words) for page in explanation.pages),
    )


def test_words_of_strangers_stay_words(explanation: Explanation) -> None:
    tame, hostile = (_Outline(render_report(_everywhere(explanation, words))) for words in ("tame", HOSTILE))

    assert hostile.tags == tame.tags
    assert [name for name, _ in hostile.attributes] == [name for name, _ in tame.attributes]
    assert hostile.text == tame.text.replace("tame", HOSTILE)


def test_file_names_and_runs_are_escaped_too(explanation: Explanation) -> None:
    runs = [Run.of(_everywhere(explanation, words)) for words in ("tame", HOSTILE)]
    for tame, hostile in [
        (render_runs([runs[0]]), render_runs([runs[1]])),
        (render_shelf([("tame", 3)]), render_shelf([(HOSTILE, 3)])),
    ]:
        assert _Outline(hostile).tags == _Outline(tame).tags
        assert HOSTILE in _Outline(hostile).text


def test_the_report_needs_nothing_but_itself(explanation: Explanation) -> None:
    page = _Outline(render_report(explanation))
    addresses = [value for name, value in page.attributes if name in ("src", "href", "action", "data", "srcset")]

    assert addresses and all(address.startswith("data:image/webp;base64,") for address in addresses)
    assert not {"script", "link", "iframe", "object", "form"} & set(page.tags)
    assert not [name for name, _ in page.attributes if name.startswith("on") or name == "style"]
    assert "url(" not in re.sub(r"url\(#", "", render_report(explanation)) and "@import" not in render_report(
        explanation
    )


def test_the_policy_admits_the_reports_own_style_and_pictures_only(explanation: Explanation) -> None:
    page = render_report(explanation)
    [policy] = [value for name, value in _Outline(page).attributes if value.startswith("default-src")]
    [css] = re.findall(r"<style>(.*?)</style>", page, re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(css.encode()).digest()).decode()

    assert policy.split("; ") == [
        "default-src 'none'",
        "img-src data:",
        f"style-src 'sha256-{digest}'",
        "base-uri 'none'",
        "form-action 'none'",
    ]
    assert page.index("Content-Security-Policy") < page.index("<title>") < page.index("<style>")


def test_pictures_are_those_of_the_pages(explanation: Explanation) -> None:
    red = replace(explanation, pages=(_page(1, 3, colour="red"), *explanation.pages[1:]))
    sources = [value for name, value in _Outline(render_findings(red)).attributes if name == "src"]
    pictures = [Image.open(BytesIO(base64.b64decode(source.partition(",")[2]))) for source in sources]
    red_pixels = [picture.convert("RGB").getpixel((5, 85)) for picture in pictures]

    # two thumbnails before, two after, then three pictures for each of the two best pages
    assert len(pictures) == 2 + 2 + 2 * 3
    assert sum(pixel[0] > 200 and max(pixel[1:]) < 60 for pixel in red_pixels if isinstance(pixel, tuple)) >= 2


def test_both_orders_are_told(explanation: Explanation) -> None:
    text = " ".join(_Outline(render_findings(explanation)).text.split())

    assert "▲ was 3" in text and "▼ was 1" in text and "now 2" in text and "now 3" in text
    assert "8 visual tokens read of 24 (keep ratio 0.5)" in text
    assert "vision 1.50 s" in text and "language model 0.25 s" in text
    assert "50.0 %" in text and "letter C" in text


def test_tokens_of_several_readings_are_not_said_to_be_of_one(explanation: Explanation) -> None:
    twice = replace(explanation, visual_tokens=20)  # at two sides, say, of which the pictures show one
    assert "20 visual tokens read vision" in " ".join(_Outline(render_findings(twice)).text.split())


def test_a_keep_ratio_of_an_eighth_is_shown_as_it_is(explanation: Explanation) -> None:
    eighth = replace(explanation, options=RankingOptions(0.125))
    assert "(keep ratio 0.125)" in render_findings(eighth)


def test_what_is_not_there_is_not_spoken_of(explanation: Explanation) -> None:
    pages = tuple(replace(page, first_stage=None, letter=None) for page in explanation.pages)
    bare = replace(explanation, options=RankingOptions(), pages=pages)
    text = _Outline(render_findings(bare)).text

    assert not [word for word in ("MaxSim", "dropped", "letter", "None") if word in text]


def test_the_latest_run_comes_first_and_moved_pages_are_marked(explanation: Explanation) -> None:
    first = Run.of(explanation)
    second = replace(first, keep_ratio=0.125, titles=("page 1 · a.pdf", "page 7"))
    table = render_runs([first, second])

    assert table.index("0.125") < table.index("0.5<")
    assert table.count('class="zr-new"') == 1 and 'class="zr-new" title="page 1 · a.pdf">page 1<' in table


def test_a_report_is_one_file_in_utf_8(explanation: Explanation, tmp_path: Path) -> None:
    write_report(_everywhere(explanation, "Größe, 図 \U0001f4ca"), tmp_path / "report.html")

    assert [path.name for path in tmp_path.iterdir()] == ["report.html"]
    assert "Größe, 図 \U0001f4ca" in (tmp_path / "report.html").read_text(encoding="utf-8")


def test_a_report_goes_to_a_path_written_either_way(explanation: Explanation, tmp_path: Path) -> None:
    write_report(explanation, tmp_path / "path.html")
    write_report(explanation, str(tmp_path / "text.html"))

    assert (tmp_path / "text.html").read_bytes() == (tmp_path / "path.html").read_bytes()


def test_a_question_that_no_file_can_hold_is_written_all_the_same(explanation: Explanation, tmp_path: Path) -> None:
    write_report(_everywhere(explanation, "half a pair: \ud83d"), tmp_path / "report.html")

    assert "half a pair: " in (tmp_path / "report.html").read_text(encoding="utf-8")


def test_of_a_reranker_in_a_folder_only_the_name_is_shown(explanation: Explanation, tmp_path: Path) -> None:
    (tmp_path / "my-reranker").mkdir()

    page = render_report(replace(explanation, model=str(tmp_path / "my-reranker")))

    assert "<b>my-reranker</b>" in page and str(tmp_path) not in page
    assert "<b>owner/name</b>" in render_report(replace(explanation, model="owner/name"))
