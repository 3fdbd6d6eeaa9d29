"""Representation Shift: tokens that a layer hardly moves are dropped."""

from __future__ import annotations

from torch import Tensor

from fewtokens.core.method import Reducer
from fewtokens.core.plan import Plan
from fewtokens.core.tokens import Tokens


class RepresentationShift(Reducer):
    """Keeps the tokens that the last MLP of the encoder moved most; no attention map is needed.

    Representation Shift (arXiv 2508.00367): the importance of a token is the L2 norm of what a branch adds to it, best
    measured on the MLP. The paper's code was not at hand; where to drop, and how much each time, is ours. Between the
    blocks of an encoder: `representation_shift_in_encoder`.

    Args:
        keep: share of the cells (float) or count (int).
    """

    paper = "Representation Shift: Unifying Token Compression with FlashAttention, arXiv 2508.00367"
    license = "written from the description"
    cost = "O(NC), without attention maps"

    def __init__(self, keep: float | int | str = 0.25) -> None:
        super().__init__()
        self.take_budget(keep)

    @property
    def needs(self) -> tuple[str, ...]:
        return ("shift",)

    def plan(self, tokens: Tokens, *, shift: Tensor) -> Plan:
        return Plan.top(shift, self.counts(tokens), tokens)
