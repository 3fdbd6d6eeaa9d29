"""PyramidDrop: fewer tokens stage by stage."""

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
    may_spare_all,
    top,
)


class PyramidDrop(LayerMethod):
    """At each of several layers keeps a smaller share of the tokens, those the last word of the question looks at.

    PyramidDrop (arXiv 2410.17247). The score is the mean over heads of the attention that the last word of the
    instruction would pay in the layer that follows, from that layer's own projections of what enters it; where there
    are labels that is the word before the first of them. Shares are of the tokens at the first layer. Tokens keep their
    positions. As in the paper, but that only tokens of videos go.

    Args:
        keep: shares (or counts) that are left after each stage; a half, a quarter and an eighth in the paper.
        layers: where the stages begin, ascending; None is quarters of the depth (8, 16, 24 of 32 layers, as in the
            paper).
    """

    paper = "PyramidDrop: Accelerating Large Vision-Language Models via Pyramid Visual Redundancy Reduction, 2410.17247"
    license = "written from the description"
    cost = "one row of attention a stage"

    def __init__(
        self, keep: Sequence[float | int] = (0.5, 0.25, 0.125), *, layers: Sequence[int] | None = None
    ) -> None:
        if isinstance(keep, (int, float)) or not keep:
            raise ValueError(f"pyramid_drop takes a share for each stage, such as keep=(0.5, 0.25), got {keep!r}")
        self.keep = tuple(Budget.parse(part, units=("share", "count")).value for part in keep)
        self.layers = None if layers is None else tuple(check_layer(layer, "pyramid_drop") for layer in layers)
        if self.layers is not None:
            if len(self.layers) != len(self.keep):
                raise ValueError(f"pyramid_drop: {len(self.keep)} shares and {len(self.layers)} layers; give one each")
            if list(self.layers) != sorted(set(self.layers)):
                raise ValueError(f"pyramid_drop: layers must ascend, got {self.layers}")

    def prune_points(self, depth: int) -> list[PrunePoint]:
        parts = len(self.keep) + 1
        found = self.layers or tuple(depth * part // parts for part in range(1, parts))
        if found[0] < 1 or list(found) != sorted(set(found)):
            raise ValueError(f"pyramid_drop: {depth} layers are too few for {len(self.keep)} stages; give layers=")
        return [PrunePoint(layer, layer) for layer in found]

    def keeps_all(self, number: int) -> bool:
        earlier = self.keep[number - 1] if number else None
        return may_spare_all(self.keep[number]) or self.keep[number] == earlier or isinstance(earlier, int)

    def choose(self, state: LayerState, number: int) -> LayerDecision:
        return LayerDecision(top(state, counts(state, self.keep[number])))
