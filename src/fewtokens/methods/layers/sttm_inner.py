"""STTM inside the language model: its quadtree and joining over time, on hidden states."""

from __future__ import annotations

import torch
from torch import Tensor

from fewtokens.core.budget import Budget
from fewtokens.core.layer_method import LayerDecision, LayerMethod, LayerState, PrunePoint, check_layer
from fewtokens.methods.ops.quadtree import Squares


class SttmInner(LayerMethod):
    """Merges the tokens of each video before one layer as `sttm` does, by what their hidden states are there.

    STTM (arXiv 2507.07990), which merges in layer 2 of 7B models. A merged token stands where its earliest, upper left
    cell stood and has its position, as in the reference for Qwen2-VL. The reference for LLaVA renumbers positions;
    then layers would disagree on where later words are, so that is not offered; "average" takes the mean rotary
    embedding of the cells instead.

    Args:
        tau, tau_time, levels, weighted, strips, keep: of `sttm`.
        layer: the first layer with fewer; 2 in the paper.
        positions: "keep" or "average".
    """

    paper = "Multi-Granular Spatio-Temporal Token Merging (STTM), arXiv 2507.07990, inside the language model"
    license = "written from the description; the reference code has no license"
    cost = "O(levels * N C); with keep nine times that"
    may_keep_all = True

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
        # Of tau and tau_time both may be given.
        instead = {"tau_time": tau_time} if tau is None else {"tau": tau}
        self.budget = Budget.choose("sttm_inner", keep, units=("share", "count"), **instead)
        self.squares = Squares(tau, tau_time, levels, bool(weighted), strips)
        self.tau, self.tau_time, self.levels, self.weighted = tau, tau_time, levels, bool(weighted)
        self.keep = keep
        self.strips = strips
        self.layer, self.positions = check_layer(layer, "sttm_inner"), positions

    def prune_points(self, depth: int) -> list[PrunePoint]:
        return [PrunePoint(self.layer)]

    def choose(self, state: LayerState, number: int) -> LayerDecision:
        kept, hidden, rope = state.video.clone(), state.hidden, state.rope
        for video in state.videos:
            place = video.columns
            if bool((place < 0).any()):
                raise ValueError("sttm_inner works on whole frames: put it before methods that drop or merge tokens")
            row = torch.full_like(place, video.row)
            before = video.tokens.require_full_grid(self.name).replace(features=state.hidden[row, place][None])
            count = None if self.budget is None else place.new_tensor([self.budget.count(before.grid)])
            after = self.squares.merge(before, count)
            source = after.assignment[0]
            cell = torch.arange(len(source), device=source.device)
            corner = torch.full_like(source[: after.N], len(source)).scatter_reduce(0, source, cell, "amin")
            anchor = place[corner]
            kept[video.row, place] = False
            kept[video.row, anchor] = True
            at = (row[: after.N], anchor)
            hidden = hidden.index_put(at, after.features[0].to(hidden.dtype))
            if self.positions == "average":
                means = [_mean(part[row, place], source, after.N) for part in rope]
                rope = tuple(part.index_put(at, mean) for part, mean in zip(rope, means, strict=True))  # type: ignore[assignment]
        return LayerDecision(kept, None if bool(kept[state.video].all()) else hidden, rope)


def _mean(values: Tensor, source: Tensor, number: int) -> Tensor:
    """Means [number,d] of values [n,d] by where they went."""
    total = values.new_zeros(number, values.shape[1], dtype=torch.float32).index_add(0, source, values.float())
    return (total / torch.bincount(source, minlength=number)[:, None]).to(values.dtype)
