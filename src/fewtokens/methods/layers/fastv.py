"""FastV: drops the video tokens that receive little attention after a few layers."""

from __future__ import annotations

from fewtokens.core.budget import Budget
from fewtokens.core.layer_method import (
    LayerDecision,
    LayerMethod,
    LayerState,
    PrunePoint,
    check_layer,
    counts,
    top,
)


class FastV(LayerMethod):
    """Before one layer, keeps the video tokens that the last question token attends to most.

    FastV (arXiv 2403.06764). The score is the attention of the last question token in layer `layer` - 1, mean over
    heads; only that row is recomputed, from the input of the layer. Kept tokens keep their positions. Difference from
    the paper: only video tokens are dropped.

    Args:
        keep: fraction (float in (0, 1], rounded to the nearest count, as published) or number (int) of a prompt's video
            tokens. Default: 0.5, as in the paper.
        layer: first layer with fewer tokens, at least 1. Default: 2, the paper's K.
    """

    paper = "An Image is Worth 1/2 Tokens After Layer 2 (FastV), arXiv 2403.06764"
    license = "written from the paper"
    cost = "one row of attention, and the queries, keys and values of one layer, O(L C^2)"

    def __init__(self, keep: float | int = 0.5, *, layer: int = 2) -> None:
        self.keep, self.layer = Budget.parse(keep, units=("fraction", "count")).value, check_layer(layer, "fastv")

    def prune_points(self, depth: int) -> list[PrunePoint]:
        return [PrunePoint(self.layer, self.layer - 1)]

    def choose(self, state: LayerState, index: int) -> LayerDecision:
        return LayerDecision(top(state, counts(state, self.keep, nearest=True)))
