"""Representation Shift between the blocks of an encoder: tokens that an MLP hardly moves are dropped."""

from __future__ import annotations

from torch import Tensor

from fewtokens.core.method import Reducer
from fewtokens.core.plan import Plan
from fewtokens.core.tokens import Tokens


class RepresentationShiftInEncoder(Reducer):
    """In some blocks keeps the tokens that the MLP before moved most; fused attention kernels still serve.

    Representation Shift (arXiv 2508.00367), see `representation_shift`. Tokens are dropped between attention and MLP,
    by what the MLP of the previous block added (in the first block, by what its attention added).

    Args:
        keep: share of the cells, met by each frame.
        layers: how many blocks drop, spread evenly over the encoder's depth, each by the same factor.
    """

    stage = "encoder"
    paper = "Representation Shift: Unifying Token Compression with FlashAttention, arXiv 2508.00367"
    license = "written from the description"
    cost = "O(NC), without attention maps"

    def __init__(self, keep: float | str = 0.25, *, layers: int = 3) -> None:
        super().__init__()
        self.take_budget(keep)
        if layers < 1:
            raise ValueError(f"layers counts the blocks that drop, at least 1, got {layers}")
        self.layers = layers

    @property
    def needs(self) -> tuple[str, ...]:
        return ("shift",)

    def plan(self, tokens: Tokens, *, shift: Tensor, layer: int = 0, depth: int = 1) -> Plan:
        reached = [n for n in range(1, self.layers + 1) if depth * n // (self.layers + 1) == layer]
        if not reached:
            return Plan.identity(tokens)
        counts = self.counts(tokens)
        # From the count at hand to the budget, by the same factor in each step that is left.
        part = 1 / (self.layers - reached[-1] + 1)
        step = tokens.count * (counts / tokens.count.clamp(min=1)) ** part
        return Plan.top(shift, counts if part == 1 else step.ceil().long(), tokens)
