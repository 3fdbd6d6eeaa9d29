"""PruneVid inside the language model: of each group of tokens those that the question looks at."""

from __future__ import annotations

import torch
from torch import Tensor

from fewtokens.core.budget import Budget
from fewtokens.core.layer_method import LayerDecision, LayerMethod, LayerState, PrunePoint, check_layer, may_spare_all
from fewtokens.core.tokens import Tokens


class PruneVidInner(LayerMethod):
    """After one layer keeps a share of each group of tokens, and takes the rest out of the earlier caches too.

    PruneVid (arXiv 2412.16117), stage B. The score is the largest attention over heads and words of the question (after
    the last video) in layer `layer`. Groups are tokens whose cells span the same frames: after `prunevid` (stage A) the
    static tokens of each segment and the dynamic ones of each frame, as in the paper; of whole frames each frame. At
    least one token of a group stays (in the published code none of a group whose share is below one). Positions are
    kept; what is generated later sees in every layer what stayed.

    Args:
        keep: share of each group; 0.4 in the paper.
        layer: the layer that is asked, the last one with all tokens; M = 10 in the paper.
    """

    paper = "PruneVid: Visual Token Pruning for Efficient Video Large Language Models, arXiv 2412.16117, stage B"
    license = "written from the description; the reference code is CC BY-NC-SA 4.0"
    cost = "one row of attention for each word of the question"
    asks = "text"
    prunes_earlier = True

    def __init__(self, keep: float = 0.4, *, layer: int = 10) -> None:
        if isinstance(keep, int) and not isinstance(keep, bool):
            raise ValueError(f"prunevid_inner: keep is a share of each group such as 0.4, not the count {keep}")
        self.keep, self.layer = Budget.parse(keep, units=("share",)).value, layer
        check_layer(layer + 1, "prunevid_inner")

    @property
    def pool(self) -> str:
        return "max"

    def prune_points(self, depth: int) -> list[PrunePoint]:
        return [PrunePoint(self.layer + 1, self.layer)]

    def named_layers(self, depth: int) -> list[tuple[int, int]]:
        return [(self.layer, self.layer + 1)]

    def keeps_all(self, number: int) -> bool:
        # Groups of one token have nothing to give.
        return may_spare_all(self.keep) or self.may_keep_all

    def choose(self, state: LayerState, number: int) -> LayerDecision:
        assert state.scores is not None
        kept = torch.zeros_like(state.video)
        for video in state.videos:
            there = video.columns >= 0
            own = video.columns[there]
            group = spans(video.tokens)[there]
            size = torch.bincount(group)
            count = (size.double() * self.keep + 1e-6).long().clamp(min=1)
            order = state.scores[video.row, own].argsort(descending=True, stable=True)
            order = order[group[order].argsort(stable=True)]  # by group, best first
            rank = torch.arange(len(own), device=own.device) - (size.cumsum(0) - size)[group[order]]
            kept[video.row, own[order[rank < count[group[order]]]]] = True
        return LayerDecision(kept)


def spans(tokens: Tokens) -> Tensor:
    """A number for each token of one video, int64 [N], equal where the cells span the same frames."""
    frames = torch.arange(tokens.grid.T, device=tokens.device).repeat_interleave(tokens.grid.cells_per_frame)
    source = tokens.assignment[0]
    token, frame = source[source >= 0], frames[source >= 0]
    # A token without cells of its own (soft weights) is of the frame it stands in.
    first = tokens.frame[0].scatter_reduce(0, token, frame, "amin", include_self=False)
    last = tokens.frame[0].scatter_reduce(0, token, frame, "amax", include_self=False)
    return (first * tokens.grid.T + last).unique(return_inverse=True)[1]
