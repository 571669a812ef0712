"""Where each prompt token stands for M-RoPE, computed once, on the CPU, without a loop over pages.

The same numbers as transformers' ``get_rope_index`` (Qwen3-VL), which walks over the tokens in Python: text advances by
one in time, height and width alike; a page stays at its start in time, counts its rows and columns from there in height
and width, and the text behind it goes on at ``start + max(rows, columns)``. Letters: N pages, V visual tokens of all
pages, L prompt tokens.
"""

import torch


def rope_positions(is_visual: torch.Tensor, grids: torch.Tensor, merge: int) -> torch.Tensor:
    """Return the M-RoPE positions of a prompt: (L,) bool, (N, 3) patches a page -> (3, L) int64.

    ``merge`` patches along height and along width become one visual token. A page is one picture: its grid's first
    number is 1.
    """
    rows, columns = grids[:, 1] // merge, grids[:, 2] // merge  # (N,)
    counts = rows * columns
    page = torch.arange(len(counts)).repeat_interleave(counts)  # (V,): the page of each visual token
    place = torch.arange(len(page)) - (counts.cumsum(0) - counts)[page]  # (V,): its place in that page
    visual = is_visual.nonzero()[:, 0]  # (V,)
    steps = (~is_visual).long()  # (L,): how far the token behind is ahead
    steps[visual[counts.cumsum(0) - 1]] = torch.maximum(rows, columns)
    positions = (steps.cumsum(0) - steps).repeat(3, 1)  # (3, L)
    positions[1, visual] += place // columns[page]
    positions[2, visual] += place % columns[page]
    return positions
