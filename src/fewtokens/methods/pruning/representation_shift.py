"""Representation Shift: tokens that a layer hardly moves are dropped."""

from __future__ import annotations

from torch import Tensor

from fewtokens.core.grid import Grid
from fewtokens.core.method import Method, check_keep, check_share, planned_by_frame, planned_count
from fewtokens.core.plan import Plan
from fewtokens.core.tokens import Tokens


class RepresentationShift(Method):
    """Keeps the tokens that the MLP moves most; no attention map is needed, so fused kernels serve.

    Representation Shift (arXiv 2508.00367): the importance of a token is the L2 norm of what a branch adds to it, best
    measured on the MLP. Inside an encoder tokens are dropped between attention and MLP of some blocks, by what the MLP
    of the block before added (in the first block, by what its attention added). The paper's code was not at hand: where
    to drop, and how much each time, is ours.

    Args:
        keep: share of the cells (float) or count (int); inside an encoder a share, met by each frame.
        stage: "encoder", or "tokens": once, by the last MLP of the encoder.
        layers: inside an encoder, how many blocks drop, spread evenly over its depth, each by the same factor.
    """

    stage = "encoder"
    needs = ("shift",)
    paper = "Representation Shift: Unifying Token Compression with FlashAttention, arXiv 2508.00367"
    license = "written from the description"
    cost = "O(NC), without attention maps"

    def __init__(self, keep: float | int = 0.25, *, stage: str = "encoder", layers: int = 3) -> None:
        super().__init__()
        self.keep = check_share(keep) if stage == "encoder" else check_keep(keep)
        if stage not in ("encoder", "tokens"):
            raise ValueError(f"representation_shift works at stage 'encoder' or 'tokens', not {stage!r}")
        if layers < 1:
            raise ValueError(f"layers counts the blocks that drop, at least 1, got {layers}")
        self.stage, self.layers = stage, layers

    def planned_count(self, grid: Grid) -> int:
        if self.stage == "encoder":
            return planned_by_frame(grid, self.keep)
        return planned_count(grid, self.keep)

    def plan(self, tokens: Tokens, *, shift: Tensor, layer: int = 0, depth: int = 1) -> Plan:
        counts = self.counts(tokens)
        if self.stage == "encoder":
            done = [n for n in range(1, self.layers + 1) if depth * n // (self.layers + 1) == layer]
            if not done:
                return Plan.identity(tokens)
            # From what is there to what is wanted, by the same factor in each step that is left.
            part = 1 / (self.layers - done[-1] + 1)
            step = tokens.count * (counts / tokens.count.clamp(min=1)) ** part
            counts = counts if part == 1 else step.ceil().long()
        return Plan.top(shift, counts, tokens)
