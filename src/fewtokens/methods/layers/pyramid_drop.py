"""PyramidDrop: drops video tokens in stages over the depth of the language model."""

from __future__ import annotations

from collections.abc import Sequence

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


class PyramidDrop(LayerMethod):
    """At each of several layers, keeps fewer video tokens: those the last question token attends to most.

    PyramidDrop (arXiv 2410.17247). The score is the attention that the last instruction token would pay in the layer
    that follows, mean over heads, computed from that layer's projections of its input. With labels, the last
    instruction token is the one before the first label. Fractions refer to the tokens at the first layer. Kept tokens
    keep their positions. Difference from the paper: only video tokens are dropped.

    Args:
        keep: fraction (float in (0, 1]) or number (int) of tokens after each stage. Default: (0.5, 0.25, 0.125), as in
            the paper.
        layers: first layer of each stage, ascending. None for equal parts of the depth (8, 16, 24 of 32 layers, as in
            the paper).
    """

    paper = "PyramidDrop: Accelerating Large Vision-Language Models via Pyramid Visual Redundancy Reduction, 2410.17247"
    license = "written from the paper"
    cost = "one row of attention per stage"

    def __init__(
        self, keep: Sequence[float | int] = (0.5, 0.25, 0.125), *, layers: Sequence[int] | None = None
    ) -> None:
        if isinstance(keep, (int, float)) or not keep:
            raise ValueError(f"pyramid_drop: keep must be one budget per stage such as (0.5, 0.25), got {keep!r}")
        self.keep = tuple(Budget.parse(part, units=("fraction", "count")).value for part in keep)
        self.layers = None if layers is None else tuple(check_layer(layer, "pyramid_drop") for layer in layers)
        if self.layers is not None:
            if len(self.layers) != len(self.keep):
                raise ValueError(
                    f"pyramid_drop: keep and layers must have the same length, got {len(self.keep)} and "
                    f"{len(self.layers)}"
                )
            if list(self.layers) != sorted(set(self.layers)):
                raise ValueError(f"pyramid_drop: layers must be in ascending order, got {self.layers}")

    def prune_points(self, depth: int) -> list[PrunePoint]:
        parts = len(self.keep) + 1
        layers = self.layers or tuple(depth * part // parts for part in range(1, parts))
        if layers[0] < 1 or list(layers) != sorted(set(layers)):
            raise ValueError(
                f"pyramid_drop: {depth} layers are too few for {len(self.keep)} stages; set fewer budgets and their "
                "layers, such as keep=(0.5, 0.25), layers=(1, 2)"
            )
        return [PrunePoint(layer, layer) for layer in layers]

    def choose(self, state: LayerState, index: int) -> LayerDecision:
        return LayerDecision(top(state, counts(state, self.keep[index])))
