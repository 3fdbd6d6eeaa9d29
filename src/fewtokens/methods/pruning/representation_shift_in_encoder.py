"""Representation Shift between the blocks of an encoder: drops the tokens that an MLP changes least."""

from __future__ import annotations

from torch import Tensor

from fewtokens.core.method import Reducer
from fewtokens.core.plan import Plan
from fewtokens.core.tokens import Tokens


class RepresentationShiftInEncoder(Reducer):
    """In some blocks, keeps the tokens changed most by the previous MLP.

    Representation Shift (arXiv 2508.00367), see `representation_shift`. Tokens are dropped between attention and MLP,
    by the norm of what the MLP of the previous block added (in the first block, what its attention added). It requires
    no attention maps, so fused attention kernels can be used.

    Args:
        keep: budget, met by each frame separately: a fraction of the cells (float) or "8/frame". Default: 0.25.
        layers: number of blocks that drop tokens, evenly spaced over the encoder's depth, each by the same factor.
            Default: 3.
    """

    stage = "encoder"
    paper = "Representation Shift: Unifying Token Compression with FlashAttention, arXiv 2508.00367"
    license = "written from the description"
    cost = "O(NC), without attention maps"

    def __init__(self, keep: float | str = 0.25, *, layers: int = 3) -> None:
        super().__init__()
        self.set_budget(keep)
        if layers < 1:
            raise ValueError(f"layers must be at least 1 (the number of blocks that drop tokens), got {layers}")
        self.layers = layers

    @property
    def needs(self) -> tuple[str, ...]:
        return ("shift",)

    def plan(self, tokens: Tokens, *, shift: Tensor, layer: int = 0, depth: int = 1) -> Plan:
        steps = [n for n in range(1, self.layers + 1) if depth * n // (self.layers + 1) == layer]
        if not steps:
            return Plan.identity(tokens)
        counts = self.counts(tokens)
        # From the current count to the budget, by the same factor in each remaining step.
        part = 1 / (self.layers - steps[-1] + 1)
        step = tokens.count * (counts / tokens.count.clamp(min=1)) ** part
        return Plan.top(shift, counts if part == 1 else step.ceil().long(), tokens)
