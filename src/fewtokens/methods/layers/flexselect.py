"""FlexSelect without training: from a reference layer on, the tokens that the question's words look at."""

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


class FlexSelect(LayerMethod):
    """Keeps the tokens that some head and some word of the question looks at most in one reference layer.

    FlexSelect (arXiv 2506.00993), its ranking without training. The score is the attention in layer `layer`, over heads
    and over the words after the last video, of which the rows are recomputed.

    A variant: the paper runs the model up to the reference layer to rank, and then again from its first layer on what
    was selected; here the pass continues, so the layers before `layer` have seen all tokens, and are paid for. Only
    tokens of videos go.

    Args:
        keep: share (float) or count (int) of a prompt's video tokens. A quarter is ours; the paper gives counts.
        layer: the reference layer; 19 is the one of LLaVA-Video-7B (28 layers) in the paper.
        by: how heads and words are pooled, "max" (argmax in the published code) or "mean" (its default).
    """

    paper = "FlexSelect: Flexible Token Selection for Efficient Long Video Understanding, arXiv 2506.00993"
    license = "written from the description; the reference code is CC BY-NC-SA 4.0"
    cost = "one row of attention for each word of the question"
    asks = "text"

    def __init__(self, keep: float | int = 0.25, *, layer: int = 19, by: str = "max") -> None:
        if by not in ("max", "mean"):
            raise ValueError(f"flexselect: by must be 'max' or 'mean', got {by!r}")
        self.keep, self.layer, self.by = (
            Budget.parse(keep, units=("share", "count")).value,
            check_layer(layer, "flexselect"),
            by,
        )

    @property
    def pool(self) -> str:
        return self.by

    def prune_points(self, depth: int) -> list[PrunePoint]:
        return [PrunePoint(self.layer, self.layer)]

    def keeps_all(self, number: int) -> bool:
        return may_spare_all(self.keep)

    def choose(self, state: LayerState, number: int) -> LayerDecision:
        return LayerDecision(top(state, counts(state, self.keep)))
