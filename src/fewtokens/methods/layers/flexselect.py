"""FlexSelect without training: keeps the video tokens that the question attends to in a reference layer."""

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


class FlexSelect(LayerMethod):
    """Keeps the video tokens with the highest attention from the question in one reference layer.

    FlexSelect (arXiv 2506.00993), its training-free ranking. The score is the attention in layer `layer`, pooled over
    heads and over the text tokens after the last video; only their rows are recomputed. Differences from the paper: it
    runs the model up to the reference layer to rank the tokens, then reruns it from the first layer on those selected;
    here the pass continues, so the layers before `layer` process all tokens. Only video tokens are dropped.

    Args:
        keep: fraction (float in (0, 1]) or number (int) of a prompt's video tokens. Default: 0.25, ours; the paper
            gives numbers.
        layer: reference layer, at least 1. Default: 19, the paper's choice for LLaVA-Video-7B (28 layers).
        by: pooling over heads and text tokens: "max" (argmax in the published code) or "mean" (its default).
    """

    paper = "FlexSelect: Flexible Token Selection for Efficient Long Video Understanding, arXiv 2506.00993"
    license = "written from the paper; reference code CC BY-NC-SA 4.0"
    cost = "one row of attention per question token"
    scoring_queries = "text"

    def __init__(self, keep: float | int = 0.25, *, layer: int = 19, by: str = "max") -> None:
        if by not in ("max", "mean"):
            raise ValueError(f"flexselect: by must be 'max' or 'mean', got {by!r}")
        self.keep, self.layer, self.by = (
            Budget.parse(keep, units=("fraction", "count")).value,
            check_layer(layer, "flexselect"),
            by,
        )

    @property
    def pool(self) -> str:
        return self.by

    def prune_points(self, depth: int) -> list[PrunePoint]:
        return [PrunePoint(self.layer, self.layer)]

    def choose(self, state: LayerState, index: int) -> LayerDecision:
        return LayerDecision(top(state, counts(state, self.keep)))
