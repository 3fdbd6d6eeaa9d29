"""Uniform sampling of tokens: the baseline without any selection."""

from __future__ import annotations

import torch

from fewtokens.core.method import Reducer
from fewtokens.core.plan import Plan
from fewtokens.core.tokens import Tokens


class Uniform(Reducer):
    """Keeps K evenly spaced tokens in raster order.

    The raster order is divided into K equal stretches, and the middle token of each is kept.

    Args:
        keep: budget, a fraction of the cells (float), a count (int) or "8/frame". Default: 0.25.
    """

    paper = "baseline"
    license = "none needed"
    cost = "O(N)"

    def __init__(self, keep: float | int | str = 0.25) -> None:
        super().__init__()
        self.set_budget(keep)

    def plan(self, tokens: Tokens) -> Plan:
        count = self.counts(tokens)
        slots = self.max_slots(tokens)
        slot_index = torch.arange(slots, device=tokens.device)
        # floor((2i+1) * n / (2K)) in integers: exact for any size.
        index = (2 * slot_index + 1) * tokens.count[:, None] // (2 * count[:, None])
        survivors = torch.zeros(tokens.B, tokens.N + 1, dtype=torch.bool, device=tokens.device)
        survivors.scatter_(1, index.masked_fill(slot_index >= count[:, None], tokens.N), True)
        return Plan.keep(survivors[:, :-1], slots)
