"""Temporal subsampling: the baseline that every video model already has."""

from __future__ import annotations

import torch

from fewtokens.core.method import Reducer
from fewtokens.core.plan import Plan
from fewtokens.core.tokens import Tokens


class FewerFrames(Reducer):
    """Keeps full frames, evenly spaced over the video.

    If the budget is not a multiple of the frame size, one more frame is included and the last frame keeps only evenly
    spread tokens, so that the count is exact.

    Args:
        keep: budget, a fraction of the cells (float), a count (int) or "8/frame". Default: 0.25.
    """

    paper = "baseline"
    license = "none needed"
    cost = "O(N log N)"

    def __init__(self, keep: float | int | str = 0.25) -> None:
        super().__init__()
        self.set_budget(keep)

    def plan(self, tokens: Tokens) -> Plan:
        count = self.counts(tokens)[:, None]
        per_frame = tokens.grid.cells_per_frame
        lengths = torch.tensor([grid.T for grid in tokens.grid.videos(tokens.B)], device=tokens.device)[:, None]
        frames = (count + per_frame - 1) // per_frame
        index = torch.arange(int(frames.max()), device=tokens.device)
        selected = (2 * index + 1) * lengths // (2 * frames)
        # Rank of each frame: its index among the selected ones, or past them all.
        rank = torch.full((tokens.B, tokens.grid.T + 1), tokens.grid.T, device=tokens.device)
        rank.scatter_(1, selected.masked_fill(index >= frames, tokens.grid.T), index.expand(tokens.B, -1))
        rank[:, -1] = tokens.grid.T
        own_rank = rank.gather(1, tokens.frame)
        # Multiples of the golden ratio, modulo 1: any prefix of the sequence is evenly spread.
        position = torch.arange(per_frame, device=tokens.device)
        spread = ((position.double() * 0.6180339887498949) % 1).argsort().argsort() / per_frame
        spread = spread[tokens.cell % per_frame]
        return Plan.top(-(own_rank + spread), count.squeeze(1), tokens, num_slots=self.max_slots(tokens))
