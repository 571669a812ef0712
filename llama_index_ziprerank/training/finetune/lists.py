"""Questions and candidates become training lists: what the teacher is asked, and what it answered."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from llama_index_ziprerank.training.finetune.documents import write_whole
from llama_index_ziprerank.training.finetune.first_stage import Ranked
from llama_index_ziprerank.training.finetune.questions import Asked
from llama_index_ziprerank.training.finetune.text_teacher import TextTeacher
from llama_index_ziprerank.training.teacher import LabelFile, TeacherQuery


def teacher_query(question: Asked, ranked: Ranked, most: int) -> TeacherQuery:
    """Ask for the order of the first stage's `most` best pages; pages that it missed replace the last wrong ones.

    At least one wrong page stays. A list without a page that answers the question would teach little.
    """
    scores = dict(ranked)
    found = [page for page, _ in ranked[:most]]
    wrong = [page for page in found if page not in question.pages]
    missed = [page for page in question.pages if page not in found][: max(0, len(wrong) - 1)]
    dropped = wrong[len(wrong) - len(missed) :]
    shown = [page for page in found if page not in dropped] + missed
    document = question.document
    return TeacherQuery(
        query_id=question.id,
        query=question.text,
        doc_name=document.name,
        domain="",
        candidates=tuple(document.page_id(page) for page in shown),
        positives=tuple(document.page_id(page) for page in question.pages),
        first_stage_scores=tuple(scores[page] for page in shown),
    )


def label_by_text(
    questions: Sequence[Asked], queries: Sequence[TeacherQuery], labels: LabelFile, teachers: Mapping[str, TextTeacher]
) -> None:
    """Let the text teachers, by document, order every query that `labels` does not hold yet."""
    for question, query in zip(questions, queries, strict=True):
        if query not in labels:
            document = question.document
            pages = {document.page_id(page): page for page in document.labels.candidates}
            shown = [pages[str(candidate)] for candidate in query.candidates]
            order = teachers[document.name].order(question.text, shown)
            labels.add(query, [shown.index(page) for page in order], "text layer")


def write_lists(labelled: Path, to: Path, pages: Path) -> int:
    """Write what the teacher answered as training lists of one's own, with images in `pages`; return how many.

    Lists of which no candidate answers the question, or of fewer than two candidates, are left out.
    """
    rows = []
    for line in labelled.read_text(encoding="utf-8").split("\n")[:-1]:  # not at U+2028
        row = json.loads(line)
        candidates = row["candidate_page_ids"]
        positives = [place for place, page in enumerate(candidates) if page in row["gt_page_ids"]]
        if positives and len(candidates) > 1:
            images = [f"{pages.name}/{page}.png" for page in candidates]
            rows.append(
                {"query": row["query"], "pages": images, "order": row["openai_ranking"], "positives": positives}
            )
    write_whole(to, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    return len(rows)
