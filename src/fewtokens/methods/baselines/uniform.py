"""Uniform sampling of tokens: the baseline without any choice."""

from __future__ import annotations

import torch

from fewtokens.core.method import Reducer
from fewtokens.core.plan import Plan
from fewtokens.core.tokens import Tokens


class Uniform(Reducer):
    """Keeps every (N/K)-th token of the raster, the middle one of each stretch.

    Args:
        keep: share of the cells (float) or count (int).
    """

    paper = "baseline"
    license = "none needed"
    cost = "O(N)"

    def __init__(self, keep: float | int | str = 0.25) -> None:
        super().__init__()
        self.take_budget(keep)

    def plan(self, tokens: Tokens) -> Plan:
        count = self.counts(tokens)
        slots = self.max_slots(tokens)
        place = torch.arange(slots, device=tokens.device)
        # floor((2i+1) * n / (2K)) in integers: exact for any size.
        index = (2 * place + 1) * tokens.count[:, None] // (2 * count[:, None])
        kept = torch.zeros(tokens.B, tokens.N + 1, dtype=torch.bool, device=tokens.device)
        kept.scatter_(1, index.masked_fill(place >= count[:, None], tokens.N), True)
        return Plan.keep(kept[:, :-1], slots)
