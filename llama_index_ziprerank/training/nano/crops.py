"""Crops of labelled pages, cut and worn where the model is: all pages lie on its device, so a GPU never waits for them.

B crops of H x W pixels hold B * T merged tokens of 32 x 32 pixels, numbered over the whole batch in row-major order.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from llama_index_ziprerank.training.nano.labels import POINT_STEP, LabelledPage
from llama_index_ziprerank.training.nano.model import TOKEN_SIDE

WHITE = 255
_MOST_COLUMNS = 12
"""Merged tokens that one piece is looked for in: headlines are that wide."""


@dataclass(frozen=True)
class Crops:
    """A batch of crops with their labels; O pieces are owned by some token."""

    gray: Tensor  # (B, H, W) float32, 0..255
    glyphs: Tensor  # (B, H / 4, W / 4) uint8 classes of characters
    tokens: Tensor  # (O,) int64, ascending
    pieces: Tensor  # (O,) int64, the piece that the token owns


class PagePool:
    """Labelled pages of any size on one device, end to end in flat buffers."""

    def __init__(self, pages: Sequence[LabelledPage], device: str | torch.device = "cpu") -> None:
        pages = [page for page in pages if len(page.pieces)]
        self.images, self._pixels = _join([page.image.reshape(-1) for page in pages], device)
        self.glyphs, self._points = _join([page.glyphs.reshape(-1) for page in pages], device)
        self.pieces, self._spans = _join([page.pieces for page in pages], device)
        self.spans, _ = _join([page.spans for page in pages], device)
        self.sizes = torch.tensor([page.image.shape for page in pages], device=device)
        self.counts = torch.tensor([len(page.pieces) for page in pages], device=device)

    def __len__(self) -> int:
        """The number of pages on which something is written."""
        return len(self.counts)

    def draw(self, count: int, height: int, width: int, degraded: float = 0.0) -> Crops:
        """Cut `count` crops, each around a random piece of a random page; a share `degraded` looks scanned."""
        device = self.counts.device
        pages = torch.randint(len(self), (count,), device=device)
        chosen = (torch.rand(count, device=device) * self.counts[pages]).long()
        left, _, middle = self.spans[self._spans[pages] + chosen].T
        shift = torch.rand(2, count, device=device)
        size = self.sizes[pages].T
        wanted = torch.stack([middle - shift[0] * height, left - shift[1] * width]).long()
        room = size - torch.tensor([[height], [width]], device=device)
        corners = wanted.minimum(room).clamp(min=0) // POINT_STEP * POINT_STEP
        crops = self.cut(pages, corners[0], corners[1], height, width)
        if worn := int(degraded * count + torch.rand(()).item()):
            crops.gray[:worn] = degrade(crops.gray[:worn])
        return crops

    def cut(self, pages: Tensor, tops: Tensor, lefts: Tensor, height: int, width: int) -> Crops:
        """Cut one crop of each of `pages` (B,), top and left multiples of 4; white and unlabelled beyond the page.

        A merged token owns the pieces whose middle it holds, and those that span most of its width.
        """
        sizes = self.sizes[pages]
        gray = _windows(self.images, self._pixels[pages], sizes, tops, lefts, height, width, WHITE)
        glyphs = _windows(
            self.glyphs,
            self._points[pages],
            sizes // POINT_STEP,
            tops // POINT_STEP,
            lefts // POINT_STEP,
            height // POINT_STEP,
            width // POINT_STEP,
            0,
        )
        return Crops(gray.float(), glyphs, *self._owned(pages, tops, lefts, height // TOKEN_SIDE, width // TOKEN_SIDE))

    def _owned(self, pages: Tensor, tops: Tensor, lefts: Tensor, rows: int, columns: int) -> tuple[Tensor, Tensor]:
        """Tokens and the pieces that they own, of crops of rows x columns tokens."""
        device = pages.device
        number = torch.arange(int(self.counts[pages].max()), device=device)
        there = number < self.counts[pages, None]  # (B, K)
        place = torch.where(there, self._spans[pages, None] + number, 0)
        left, right, middle = self.spans[place].unbind(-1)
        start, end = (left - lefts[:, None]) / TOKEN_SIDE, (right - lefts[:, None]) / TOKEN_SIDE
        row = ((middle - tops[:, None]) / TOKEN_SIDE).floor()
        there &= (row >= 0) & (row < rows) & (end > 0) & (start < columns)
        crop, piece = there.nonzero(as_tuple=True)
        start, end, row, place = start[crop, piece], end[crop, piece], row[crop, piece], place[crop, piece]
        column = start.clamp(min=0).floor()[:, None] + torch.arange(_MOST_COLUMNS, device=device)  # (pieces, 12)
        covered = end[:, None].minimum(column + 1) - start[:, None].maximum(column)
        owns = (column == ((start + end) / 2).floor()[:, None]) | (covered > 0.65)
        owns &= (column < columns) & (column <= end[:, None].floor())
        which, _ = owns.nonzero(as_tuple=True)
        tokens = (crop[which] * rows + row[which].long()) * columns + column[owns].long()
        tokens, order = tokens.sort(stable=True)
        return tokens, self.pieces[place[which]][order].long()


def _join(parts: list[np.ndarray], device: str | torch.device) -> tuple[Tensor, Tensor]:
    """Lay arrays end to end on `device`: all their elements, and where each begins."""
    starts = np.cumsum([0, *map(len, parts[:-1])])
    return torch.from_numpy(np.concatenate(parts)).to(device), torch.from_numpy(starts).to(device)


def _windows(
    flat: Tensor, starts: Tensor, sizes: Tensor, tops: Tensor, lefts: Tensor, height: int, width: int, beyond: int
) -> Tensor:
    """Cut a window out of each of B flattened pictures: (B, height, width), `beyond` where it leaves the picture."""
    row = tops[:, None] + torch.arange(height, device=flat.device)
    column = lefts[:, None] + torch.arange(width, device=flat.device)
    inside = (row < sizes[:, :1])[:, :, None] & (column < sizes[:, 1:])[:, None]
    place = (starts[:, None] + row * sizes[:, 1:])[:, :, None] + column[:, None]
    return torch.where(inside, flat[torch.where(inside, place, 0)], beyond)


def degrade(gray: Tensor) -> Tensor:
    """Make crops (B, H, W) look scanned: turned by up to 1.2 degrees, half of them blurred, all paler and noisy.

    Their labels still fit within pixels.
    """
    count, height, width = gray.shape
    chance = torch.rand(5, count, 1, 1, device=gray.device)
    angle = math.radians(1.2) * (2 * chance[0, :, 0, 0] - 1)
    turn = torch.zeros(count, 2, 3, device=gray.device)
    turn[:, 0, 0] = turn[:, 1, 1] = angle.cos()
    turn[:, 0, 1], turn[:, 1, 0] = -angle.sin() * height / width, angle.sin() * width / height
    grid = F.affine_grid(turn, [count, 1, height, width], align_corners=False)
    ink = F.grid_sample((WHITE - gray)[:, None], grid, align_corners=False)[:, 0]  # beyond the crop there is none
    ink = _blur(ink, torch.where(chance[1] < 0.5, 0.3 + 0.5 * chance[2], 1e-3))
    paper, black = WHITE - 30 * chance[3], 70 * chance[4]
    noise = torch.randn_like(gray) * 14 * torch.rand(count, 1, 1, device=gray.device)
    return (paper - ink / WHITE * (paper - black) + noise).clamp(0, WHITE)


def _blur(gray: Tensor, sigma: Tensor) -> Tensor:
    """Gaussian blur of each picture (B, H, W) by its own sigma (B, 1, 1) in pixels, below 1; black beyond the edge."""
    reach = torch.arange(-2, 3, device=gray.device)
    kernel = torch.softmax(-(reach**2) / (2 * sigma**2), -1)[:, 0]  # (B, 5)
    for axis in (1, 2):
        padded = F.pad(gray, (2, 2, 0, 0) if axis == 2 else (0, 0, 2, 2))
        shifted = (padded.narrow(axis, start, gray.shape[axis]) for start in range(len(reach)))
        gray = sum((part * kernel[:, [place], None] for place, part in enumerate(shifted)), torch.zeros_like(gray))
    return gray
