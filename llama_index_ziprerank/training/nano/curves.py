"""`python -m llama_index_ziprerank.training.nano.curves WORK PICTURE`: what the stages' logs say, drawn."""

import re
import sys
from pathlib import Path

import matplotlib
import numpy as np

matplotlib.use("Agg")
from matplotlib import pyplot  # noqa: E402

STAGES = {
    "reading/reading.log": ("Reading: word pieces ranked first", r"([\d.]+) min .*top1 ([\d.]+)", 8),
    "retrieval/retrieval.log": ("Retriever: pages ranked first in a batch", r"([\d.]+) min .*top1 ([\d.]+)", 1),
    "ranking/ranking.log": ("Ranker: an answer ranked first in its list", r"([\d.]+) min .*top1 ([\d.]+)", 1),
}
"""Log in the working folder → its title, where minutes and share stand in a line, and how many lines are averaged."""


def read_curve(log: Path, pattern: str, window: int) -> tuple[np.ndarray, np.ndarray]:
    """Minutes and shares of a log, each the mean of `window` lines."""
    found = [
        match.groups() for line in log.read_text(encoding="utf-8").splitlines() if (match := re.search(pattern, line))
    ]
    values = np.array(found, float)[: len(found) // window * window].reshape(-1, window, 2).mean(1)
    return values[:, 0], values[:, 1]


def draw_curves(work: Path, picture: Path) -> None:
    """Draw the learning curves of the stages whose logs are in `work`."""
    logs = {work / name: stage for name, stage in STAGES.items() if (work / name).exists()}
    if not logs:
        raise FileNotFoundError(f"{work} holds none of {', '.join(STAGES)}: train first (make nano).")
    figure, axes = pyplot.subplots(1, len(logs), figsize=(4 * len(logs), 2.8), layout="constrained", squeeze=False)
    for axis, (log, (title, pattern, window)) in zip(axes[0], logs.items(), strict=True):
        axis.plot(*read_curve(log, pattern, window), color="#2a6f97", linewidth=1.6)
        axis.set(title=title, xlabel="minutes", ylim=(0, 1))
        axis.title.set_fontsize(10)
        axis.grid(alpha=0.3)
    figure.savefig(picture, dpi=110)


if __name__ == "__main__":
    draw_curves(Path(sys.argv[1]), Path(sys.argv[2]))
