"""PruneVid, stage B: keeps the tokens of each group that the question attends to most."""

from __future__ import annotations

import torch
from torch import Tensor

from fewtokens.core.budget import Budget
from fewtokens.core.layer_method import (
    LayerDecision,
    LayerMethod,
    LayerState,
    PrunePoint,
    check_layer,
)
from fewtokens.core.tokens import Tokens


class PruneVidInner(LayerMethod):
    """After one layer, keeps a fraction of each token group and removes the rest from all caches.

    PruneVid (arXiv 2412.16117), stage B. The score is the maximum attention over heads and question tokens (those after
    the last video) in layer `layer`. Groups are tokens whose cells span the same frames: after `prunevid` (stage A),
    the static tokens of each segment and the dynamic tokens of each frame, as in the paper; without it, each frame. At
    least one token of a group stays (the published code may drop a whole group). Kept tokens keep their positions.
    Dropped tokens are also removed from the caches of earlier layers.

    Args:
        keep: fraction of each group, in (0, 1]. Default: 0.4, as in the paper.
        layer: layer that scores the tokens, the last one with all of them. Default: 10, the paper's M.
    """

    paper = "PruneVid: Visual Token Pruning for Efficient Video Large Language Models, arXiv 2412.16117, stage B"
    license = "written from the paper; reference code CC BY-NC-SA 4.0"
    cost = "one row of attention per question token"
    scoring_queries = "text"
    prunes_earlier = True

    def __init__(self, keep: float = 0.4, *, layer: int = 10) -> None:
        if isinstance(keep, int) and not isinstance(keep, bool):
            raise ValueError(f"prunevid_inner: keep must be a fraction of each group such as 0.4, got the count {keep}")
        self.keep, self.layer = Budget.parse(keep, units=("fraction",)).value, layer
        check_layer(layer + 1, "prunevid_inner")

    @property
    def pool(self) -> str:
        return "max"

    def prune_points(self, depth: int) -> list[PrunePoint]:
        return [PrunePoint(self.layer + 1, self.layer)]

    def named_layers(self, depth: int) -> list[tuple[int, int]]:
        return [(self.layer, self.layer + 1)]

    def choose(self, state: LayerState, index: int) -> LayerDecision:
        assert state.scores is not None
        selected = torch.zeros_like(state.video)
        for video in state.videos:
            present = video.columns >= 0
            columns = video.columns[present]
            group = frame_span_groups(video.tokens)[present]
            size = torch.bincount(group)
            count = (size.double() * self.keep + 1e-6).long().clamp(min=1)
            order = state.scores[video.row, columns].argsort(descending=True, stable=True)
            order = order[group[order].argsort(stable=True)]  # by group, best first
            rank = torch.arange(len(columns), device=columns.device) - (size.cumsum(0) - size)[group[order]]
            selected[video.row, columns[order[rank < count[group[order]]]]] = True
        return LayerDecision(selected)


def frame_span_groups(tokens: Tokens) -> Tensor:
    """Group index of each token of one video, int64 [N]: equal if the cells of two tokens span the same frames."""
    frames = torch.arange(tokens.grid.T, device=tokens.device).repeat_interleave(tokens.grid.cells_per_frame)
    assignment = tokens.assignment[0]
    token, frame = assignment[assignment >= 0], frames[assignment >= 0]
    # A token that no cell is assigned to (soft weights) spans the frame of its position.
    first = tokens.frame[0].scatter_reduce(0, token, frame, "amin", include_self=False)
    last = tokens.frame[0].scatter_reduce(0, token, frame, "amax", include_self=False)
    return (first * tokens.grid.T + last).unique(return_inverse=True)[1]
