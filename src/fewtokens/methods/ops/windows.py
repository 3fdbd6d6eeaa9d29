"""Square windows of a frame, as in encoders with windowed attention."""

from __future__ import annotations

import torch
from torch import Tensor

from fewtokens.core.budget import Budget
from fewtokens.core.grid import Grid
from fewtokens.core.plan import POSITION_UNITS, round_positions
from fewtokens.core.tokens import Tokens


def window_cells(grid: Grid, side: int) -> list[int]:
    """The number of cells of each window of a frame, row by row; windows at the border may be smaller."""
    rows, columns = ([min(side, n - at) for at in range(0, n, side)] for n in (grid.H, grid.W))
    return [row * column for row in rows for column in columns]


def tokens_per_window(grid: Grid, side: int, budget: Budget) -> int:
    """The largest number of tokens per window that fits the budget of all windows of this grid, at least 1."""
    cells = window_cells(grid, side)
    limit = budget.count(grid)
    fitting = [k for k in range(1, max(cells) + 1) if grid.T * sum(min(k, n) for n in cells) <= limit]
    return fitting[-1] if fitting else 1


def window_index(tokens: Tokens, side: int) -> Tensor:
    """The index of each token's window within its video, int64 [B,N]; -1 in padded slots."""
    across, down = -(-tokens.grid.W // side), -(-tokens.grid.H // side)
    # The mean of positions within a window is within it, but for rounding: 2.9999998 is 3.
    y, x = (round_positions(tokens.positions[..., axis]) // (POSITION_UNITS * side) for axis in (1, 2))
    return ((tokens.frame * down + y) * across + x).masked_fill(~tokens.mask, -1)


def window_targets(tokens: Tokens, side: int, limits: list[int]) -> Tensor:
    """The number of tokens of each window of each video, int64 [B,windows], from each video's limit per window."""
    size = torch.tensor(window_cells(tokens.grid, side), device=tokens.device).repeat(tokens.grid.T)
    return torch.tensor(limits, device=tokens.device)[:, None].minimum(size)
