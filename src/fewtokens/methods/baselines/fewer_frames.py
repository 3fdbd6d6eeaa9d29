"""Fewer frames: the baseline that users already have."""

from __future__ import annotations

import torch

from fewtokens.core.method import Reducer
from fewtokens.core.plan import Plan
from fewtokens.core.tokens import Tokens


class FewerFrames(Reducer):
    """Keeps whole frames, spread evenly over the video.

    Where the budget is not a multiple of the frame size, one more frame is taken and the last of them keeps
    only evenly spread tokens, so that the count is met exactly.

    Args:
        keep: share of the cells (float) or count (int).
    """

    paper = "baseline"
    license = "none needed"
    cost = "O(N log N)"

    def __init__(self, keep: float | int | str = 0.25) -> None:
        super().__init__()
        self.take_budget(keep)

    def plan(self, tokens: Tokens) -> Plan:
        count = self.counts(tokens)[:, None]
        per_frame = tokens.grid.cells_per_frame
        lengths = torch.tensor([grid.T for grid in tokens.grid.videos(tokens.B)], device=tokens.device)[:, None]
        frames = (count + per_frame - 1) // per_frame
        place = torch.arange(int(frames.max()), device=tokens.device)
        chosen = (2 * place + 1) * lengths // (2 * frames)
        # Rank of each frame: its number among the chosen ones, or past them all.
        rank = torch.full((tokens.B, tokens.grid.T + 1), tokens.grid.T, device=tokens.device)
        rank.scatter_(1, chosen.masked_fill(place >= frames, tokens.grid.T), place.expand(tokens.B, -1))
        rank[:, -1] = tokens.grid.T
        mine = rank.gather(1, tokens.frame)
        # Multiples of the golden ratio, modulo 1: any first few of them lie evenly.
        place = torch.arange(per_frame, device=tokens.device)
        spread = ((place.double() * 0.6180339887498949) % 1).argsort().argsort() / per_frame
        spread = spread[tokens.cell % per_frame]
        return Plan.top(-(mine + spread), count.squeeze(1), tokens, num_slots=self.max_slots(tokens))
