"""The teacher: any model that sees images orders the candidates of queries, listwise, and the student learns it.

No LLM is known here: the teacher takes an async callable; `llama_index_ziprerank.teachers` makes one of an LLM.
"""

from llama_index_ziprerank.training.teacher.answers import Answer, Ask, RetryRule, read_order
from llama_index_ziprerank.training.teacher.label_file import LABEL_COLUMNS, LabelFile
from llama_index_ziprerank.training.teacher.labelling import TeacherStoppedError, label_queries
from llama_index_ziprerank.training.teacher.page_images import PageImages
from llama_index_ziprerank.training.teacher.queries import TeacherQuery, check_queries, read_queries
from llama_index_ziprerank.training.teacher.teacher import (
    Teacher,
    TeacherRanking,
    TeacherSettings,
    TeacherTotals,
    UnreadableAnswerError,
)

__all__ = [
    "LABEL_COLUMNS",
    "Answer",
    "Ask",
    "LabelFile",
    "PageImages",
    "RetryRule",
    "Teacher",
    "TeacherQuery",
    "TeacherRanking",
    "TeacherSettings",
    "TeacherStoppedError",
    "TeacherTotals",
    "UnreadableAnswerError",
    "check_queries",
    "label_queries",
    "read_order",
    "read_queries",
]
