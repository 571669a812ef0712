"""A small MMDocIR in the published file formats: two domains, three documents, five questions, numbers for the head."""

import json
from io import BytesIO
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as parquet
from PIL import Image

PAGES = {"a report.pdf": 4, "laws.pdf": 3, "brochure.pdf": 2}
"""Document → its number of pages; rows follow in another order than the annotations."""
ROW_ORDER = ("laws.pdf", "a report.pdf", "brochure.pdf")
DOMAINS = {"a report.pdf": "Academic paper", "laws.pdf": "Laws", "brochure.pdf": "Laws"}

LAYOUTS: dict[str, list[tuple[int, list[int]]]] = {
    "a report.pdf": [
        (0, [0, 0, 10, 10]), (1, [0, 0, 10, 10]), (1, [0, 0, 10, 20]), (1, [5, 0, 15, 10]), (3, [0, 0, 8, 8]),
    ],
    "laws.pdf": [(0, [0, 0, 10, 10]), (2, [20, 20, 40, 30])],
    "brochure.pdf": [(0, [0, 0, 4, 4]), (1, [0, 0, 4, 4])],
}  # fmt: skip
"""Document → its layouts: page and box."""


def _question(text: str, pages: list[int], boxes: list[tuple[int, list[float]]]) -> dict[str, Any]:
    mapping = [{"page": page, "page_size": [612.0, 792.0], "bbox": box} for page, box in boxes]
    return {"Q": text, "A": "yes", "type": "['Table']", "page_id": pages, "layout_mapping": mapping}


QUESTIONS = {
    "a report.pdf": [
        _question("What grows?", [1], [(1, [0, 0, 10, 10])]),
        _question("What falls?", [0, 3], [(0, [0, 0, 10, 10]), (3, [0, 0, 10, 10])]),
    ],
    "laws.pdf": [_question("Who may vote?", [2], [(2, [20, 20, 30, 40])])],
    "brochure.pdf": [
        _question("What is new?", [1], [(1, [0, 0, 4, 4])]),
        _question("Where?", [0], [(0, [0, 0, 8, 4])]),
    ],
}


def write_mmdocir(folder: Path, *, row_group_size: int = 3) -> Path:
    """Write the three files."""
    folder.mkdir(parents=True, exist_ok=True)
    page_rows = _spans({name: PAGES[name] for name in ROW_ORDER})
    layout_rows = _spans({name: len(LAYOUTS[name]) for name in ROW_ORDER})
    annotations = [
        {
            "doc_name": name,
            "domain": DOMAINS[name],
            "page_indices": page_rows[name],
            "layout_indices": layout_rows[name],
            "questions": QUESTIONS[name],
        }
        for name in PAGES
    ]
    lines = "".join(f"{json.dumps(row)}\n" for row in annotations)
    (folder / "MMDocIR_annotations.jsonl").write_text(lines)
    pages = [_page(name, number) for name in ROW_ORDER for number in range(PAGES[name])]
    layouts = [_layout(name, number) for name in ROW_ORDER for number in range(len(LAYOUTS[name]))]
    for rows, path in ((pages, "MMDocIR_pages.parquet"), (layouts, "MMDocIR_layouts.parquet")):
        parquet.write_table(pa.Table.from_pylist(rows), folder / path, row_group_size=row_group_size)
    return folder


def _spans(counts: dict[str, int]) -> dict[str, list[int]]:
    spans, first = {}, 0
    for name, count in counts.items():
        spans[name] = [first, first + count - 1]
        first += count
    return spans


def _page(name: str, number: int) -> dict[str, Any]:
    return {
        "doc_name": name,
        "domain": DOMAINS[name],
        "passage_id": str(number),
        "image_path": f"page_images/{name}_{number}.jpg",
        "image_binary": _jpeg(number),
        "ocr_text": f"page {number}",
        "vlm_text": f"page {number}",
    }


def _layout(name: str, number: int) -> dict[str, Any]:
    page, box = LAYOUTS[name][number]
    return {
        "doc_name": name,
        "domain": DOMAINS[name],
        "type": "table",
        "layout_id": number,
        "page_id": page,
        "image_path": f"layout_images/{name}_{number}.jpg",
        "image_binary": _jpeg(number),
        "text": "",
        "ocr_text": "",
        "vlm_text": "",
        "bbox": box,
        "page_size": [612.0, 792.0],
    }


def _jpeg(number: int) -> bytes:
    """An image that tells its number by its grey."""
    buffer = BytesIO()
    Image.new("RGB", (64, 64), (20 * number, 20 * number, 20 * number)).save(buffer, "JPEG", quality=95)
    return buffer.getvalue()


PAGE_RUN = {
    "a%20report.pdf:q0": ["a%20report.pdf:p0", "a%20report.pdf:p1", "a%20report.pdf:p2", "a%20report.pdf:p3"],
    "a%20report.pdf:q1": ["a%20report.pdf:p3", "a%20report.pdf:p1", "a%20report.pdf:p0", "a%20report.pdf:p2"],
    "laws.pdf:q0": ["laws.pdf:p2", "laws.pdf:p0", "laws.pdf:p1"],
    "brochure.pdf:q0": ["brochure.pdf:p1", "brochure.pdf:p0"],
    "brochure.pdf:q1": ["brochure.pdf:p1", "brochure.pdf:p0"],
}
"""By hand, R@1 / R@3: report 0, 1 and 1/2, 1; laws 1, 1; brochure 1, 1 and 0, 1.

Academic paper: R@1 (0 + 1/2) / 2 = 1/4. Laws: (1 + 1 + 0) / 3 = 2/3.
Macro R@1 (1/4 + 2/3) / 2 = 11/24; micro (0 + 1/2 + 1 + 1 + 0) / 5 = 1/2.
"""

LAYOUT_RUN = {
    "a%20report.pdf:q0": ["a%20report.pdf:l3", "a%20report.pdf:l2", "a%20report.pdf:l1", "a%20report.pdf:l0"],
    "a%20report.pdf:q1": ["a%20report.pdf:l4", "a%20report.pdf:l0"],
    "laws.pdf:q0": ["laws.pdf:l0", "laws.pdf:l1"],
    "brochure.pdf:q0": ["brochure.pdf:l1", "brochure.pdf:l0"],
    "brochure.pdf:q1": ["brochure.pdf:l0", "brochure.pdf:l1"],
}
"""By hand, R@1 / R@5 by area:

- report q0, wanted page 1 (0, 0, 10, 10), area 100: l3 shares 5 × 10 = 50; l2 and l1 share 100 each, so
  R@1 = 0.5 and R@5 = (50 + 100 + 100) / 100 = 2.5, not clipped.
- report q1, wanted 100 + 100: l4 shares 8 × 8 = 64, l0 100: R@1 = 0.32, R@5 = 0.82.
- laws, wanted page 2 (20, 20, 30, 40), area 200: l0 is on another page, l1 (20, 20, 40, 30) shares 10 × 10: 0, 0.5.
- brochure q0: l1 is the box: 1, 1. q1, wanted (0, 0, 8, 4), area 32: l0 shares 16: 0.5, 0.5.

Academic paper: R@1 0.41, R@5 1.66. Laws: R@1 (0 + 1 + 0.5) / 3 = 0.5, R@5 (0.5 + 1 + 0.5) / 3 = 2/3.
Macro R@1 0.455, R@5 (1.66 + 2/3) / 2; micro R@1 (0.82 + 1.5) / 5 = 0.464, R@5 (3.32 + 2) / 5 = 1.064.
"""
