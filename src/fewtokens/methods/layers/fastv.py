"""FastV: after a few layers most tokens of a video are no longer looked at, so they go."""

from __future__ import annotations

from fewtokens.core.budget import Budget
from fewtokens.core.layer_method import (
    LayerDecision,
    LayerMethod,
    LayerState,
    PrunePoint,
    check_layer,
    counts,
    may_spare_all,
    top,
)


class FastV(LayerMethod):
    """Before one layer keeps the tokens that the last word of the question looked at most in the layer before.

    FastV (arXiv 2403.06764). The score is the mean over heads of the attention in layer `layer` - 1; that row alone is
    recomputed from what enters the layer. Tokens keep their positions. As in the paper, but that only tokens of
    videos go.

    Args:
        keep: share (float, to the nearest whole number, as published) or count (int) of a prompt's video tokens; the
            paper drops half.
        layer: the first layer without the others; K = 2 in the paper.
    """

    paper = "An Image is Worth 1/2 Tokens After Layer 2 (FastV), arXiv 2403.06764"
    license = "written from the description"
    cost = "one row of attention, O(L C^2 / groups) for its keys"

    def __init__(self, keep: float | int = 0.5, *, layer: int = 2) -> None:
        self.keep, self.layer = Budget.parse(keep, units=("share", "count")).value, check_layer(layer, "fastv")

    def prune_points(self, depth: int) -> list[PrunePoint]:
        return [PrunePoint(self.layer, self.layer - 1)]

    def keeps_all(self, number: int) -> bool:
        return may_spare_all(self.keep)

    def choose(self, state: LayerState, number: int) -> LayerDecision:
        return LayerDecision(top(state, counts(state, self.keep, nearest=True)))
