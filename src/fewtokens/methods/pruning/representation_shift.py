"""Representation Shift: drops the tokens that a layer changes least."""

from __future__ import annotations

from torch import Tensor

from fewtokens.core.method import Reducer
from fewtokens.core.plan import Plan
from fewtokens.core.tokens import Tokens


class RepresentationShift(Reducer):
    """Keeps the tokens that the encoder's last MLP changes most.

    Representation Shift (arXiv 2508.00367): a token's importance is the L2 norm of what a branch adds to it, measured
    best on the MLP; no attention maps are required. The paper's code was not available; where and how many tokens to
    drop is our choice. Between the blocks of an encoder: `representation_shift_in_encoder`.

    Args:
        keep: budget, a fraction of the cells (float), a count (int) or "8/frame". Default: 0.25.
    """

    paper = "Representation Shift: Unifying Token Compression with FlashAttention, arXiv 2508.00367"
    license = "written from the description"
    cost = "O(NC), without attention maps"

    def __init__(self, keep: float | int | str = 0.25) -> None:
        super().__init__()
        self.set_budget(keep)

    @property
    def needs(self) -> tuple[str, ...]:
        return ("shift",)

    def plan(self, tokens: Tokens, *, shift: Tensor) -> Plan:
        return Plan.top(shift, self.counts(tokens), tokens)
