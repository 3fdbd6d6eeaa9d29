"""STTM inside the language model: quadtree and temporal merging on hidden states."""

from __future__ import annotations

import torch
from torch import Tensor

from fewtokens.core.budget import Budget
from fewtokens.core.layer_method import LayerDecision, LayerMethod, LayerState, PrunePoint, check_layer
from fewtokens.methods.ops.quadtree import Squares


class SttmInner(LayerMethod):
    """Merges the tokens of each video before one layer as `sttm` does, based on their hidden states.

    STTM (arXiv 2507.07990), which merges in layer 2 of 7B models. A merged token takes the column and position of its
    earliest, top-left cell, as in the reference for Qwen2-VL. The reference for LLaVA renumbers positions; then layers
    would disagree on the positions of later tokens, so this is not offered. `positions="average"` uses the mean rotary
    embedding of the cells instead.

    Args:
        tau, tau_time, levels, weighted, strips, keep: as in `sttm`.
        layer: first layer with fewer tokens, at least 1. Default: 2, as in the paper.
        positions: "keep" or "average".
    """

    paper = "Multi-Granular Spatio-Temporal Token Merging (STTM), arXiv 2507.07990, inside the language model"
    license = "written from the paper; reference code without a license"
    cost = "O(levels * N C); with keep also O(M^2 C) to merge the last of M tokens pairwise"

    def __init__(
        self,
        tau: float | None = None,
        *,
        tau_time: float | None = None,
        levels: int | None = None,
        weighted: bool = False,
        strips: str = "first",
        keep: float | int | None = None,
        layer: int = 2,
        positions: str = "keep",
    ) -> None:
        if positions not in ("keep", "average"):
            raise ValueError(f"sttm_inner: positions must be 'keep' or 'average', got {positions!r}")
        # tau and tau_time may both be given.
        instead = {"tau_time": tau_time} if tau is None else {"tau": tau}
        self.budget = Budget.choose("sttm_inner", keep, units=("fraction", "count"), **instead)
        self.squares = Squares(tau, tau_time, levels, bool(weighted), strips)
        self.tau, self.tau_time, self.levels, self.weighted = tau, tau_time, levels, bool(weighted)
        self.keep = keep
        self.strips = strips
        self.layer, self.positions = check_layer(layer, "sttm_inner"), positions

    def prune_points(self, depth: int) -> list[PrunePoint]:
        return [PrunePoint(self.layer)]

    def choose(self, state: LayerState, index: int) -> LayerDecision:
        if self.positions == "average" and not state.rope:
            raise ValueError("sttm_inner: this layer has no rotary embedding to average; use positions='keep'")
        selected, hidden, rope = state.video.clone(), state.hidden, state.rope
        for video in state.videos:
            columns = video.columns
            if bool((columns < 0).any()):
                raise ValueError("sttm_inner works on whole frames: put it before methods that drop or merge tokens")
            row = torch.full_like(columns, video.row)
            before = video.tokens.require_full_grid(self.name).replace(features=state.hidden[row, columns][None])
            count = None if self.budget is None else columns.new_tensor([self.budget.count(before.grid)])
            after = self.squares.merge(before, count)
            assignment = after.assignment[0]
            cell = torch.arange(len(assignment), device=assignment.device)
            first = torch.full_like(assignment[: after.N], len(assignment)).scatter_reduce(0, assignment, cell, "amin")
            anchor = columns[first]
            selected[video.row, columns] = False
            selected[video.row, anchor] = True
            target = (row[: after.N], anchor)
            hidden = hidden.index_put(target, after.features[0].to(hidden.dtype))
            if self.positions == "average":
                means = [_mean(part[row, columns], assignment, after.N) for part in rope]
                rope = tuple(part.index_put(target, mean) for part, mean in zip(rope, means, strict=True))
        averaged = rope if self.positions == "average" else None
        return LayerDecision(selected, None if bool(selected[state.video].all()) else hidden, averaged)


def _mean(values: Tensor, assignment: Tensor, count: int) -> Tensor:
    """Means [count,d] of values [n,d] by token."""
    total = values.new_zeros(count, values.shape[1], dtype=torch.float32).index_add(0, assignment, values.float())
    return (total / torch.bincount(assignment, minlength=count)[:, None]).to(values.dtype)
