"""FastVID: segments of similar frames; the salient tokens of each frame, and anchors that gather the other tokens."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from fewtokens.core.method import Method
from fewtokens.core.plan import Plan, take_rows
from fewtokens.core.tokens import Tokens
from fewtokens.methods.ops.density import density_peaks
from fewtokens.methods.ops.segments import cut_where_frames_change, rank_within
from fewtokens.methods.ops.temporal import cosine


class _Selection(NamedTuple):
    salient: Tensor  # bool [B,N], most attended
    anchor: Tensor  # bool [B,N]
    rest: Tensor  # bool [B,N], fills the rest of the budget
    alone: Tensor  # bool [B,T], anchor frames that gather only their own tokens
    first: Tensor  # [B,T], first frame of each frame's segment
    last: Tensor


class FastVid(Method):
    """Keeps the most attended tokens; the others merge into density-peak anchors.

    FastVID (arXiv 2503.11187). The video is cut where consecutive frame vectors are among the `segments`-1 least
    similar pairs, or less similar than tau. In each frame a fraction `context` of the budget goes to anchors and the
    rest to the tokens with the most attention. Every `stride`-th frame of a segment, counted from its end, is an anchor
    frame: its anchors are the density peaks among its non-salient tokens. In each anchor frame every non-salient token
    of the segment (including anchors of other frames) joins its most similar anchor. An anchor of n tokens, itself
    included, becomes w * anchor + (1 - w) * mean(tokens) with w = max(1/(n+1), beta). An anchor frame with no more
    anchors than one frame's part of the budget (stride=1) gathers only from itself, as in the published code.

    The count is exact: the published code loses up to one token per frame and per anchor frame to rounding, and fails
    for budgets above about 0.45 or if a frame gets no anchors. Here the remaining budget goes to the next tokens by
    attention, which are returned unchanged and are also gathered, so that all other rows equal those of the published
    code. A budget of all tokens changes nothing. A token that contributes to anchors of several frames is credited to
    the most similar one. Equal densities are ordered by position, not by added noise.

    Args:
        keep: budget, a fraction of the cells (float), a count (int) or "8/frame". Default: 0.25.
        segments: minimum number of segments, c in the paper. Default: 8.
        tau: similarity of consecutive frames below which the video is always cut, in [-1, 1]. Default: 0.9.
        context: fraction of the budget for anchors, d in the paper, in [0, 1]. Default: 0.4.
        stride: frames from one anchor frame to the next, p in the paper. Default: 4.
        beta: minimum weight of an anchor, in [0, 1]. Default: 0.6.
        neighbors: number of nearest tokens that define the density. Default: 4.
    """

    paper = "FastVID: Dynamic Density Pruning for Fast Video Large Language Models, arXiv 2503.11187"
    license = "written from the description; reference code MIT"
    cost = "O(T n^2 C T/stride) with n cells per frame"
    full_grid = True

    def __init__(
        self,
        keep: float | int | str = 0.25,
        *,
        segments: int = 8,
        tau: float = 0.9,
        context: float = 0.4,
        stride: int = 4,
        beta: float = 0.6,
        neighbors: int = 4,
    ) -> None:
        super().__init__()
        self.set_budget(keep)
        if min(segments, stride, neighbors) < 1:
            raise ValueError(
                f"segments, stride and neighbors must be at least 1, got {segments}, {stride}, {neighbors}"
            )
        if not 0 <= context <= 1 or not 0 <= beta <= 1 or not -1 <= tau <= 1:
            raise ValueError(f"context and beta must be in [0, 1], tau in [-1, 1]; got {context}, {beta}, {tau}")
        self.segments, self.tau, self.context = segments, float(tau), float(context)
        self.stride, self.beta, self.neighbors = stride, float(beta), neighbors

    @property
    def needs(self) -> tuple[str, ...]:
        return ("attention", "frame_global")

    def _select(self, tokens: Tokens, attention: Tensor, frame_global: Tensor) -> _Selection:
        B, T, n = tokens.B, tokens.grid.T, tokens.grid.cells_per_frame
        x = tokens.features.float().unflatten(1, (T, n))
        lengths = tokens.mask.unflatten(1, (T, n))[..., 0].sum(1)
        similarity = cosine(frame_global[:, :-1], frame_global[:, 1:])
        first, last = cut_where_frames_change(similarity, lengths, self.segments, self.tau)

        counts = self.counts(tokens)
        per_frame = counts // lengths.clamp(min=1)
        context = (per_frame.double() * self.context).long()  # rounded down in double precision, as published
        frame = tokens.frame.masked_fill(~tokens.mask, -1)
        attended = rank_within(-attention.float(), frame, T)
        salient = (attended < (per_frame - context)[:, None]) & tokens.mask

        t = torch.arange(T, device=x.device)
        length = last - first + 1
        num_anchors = context[:, None] * length // -(-length // self.stride)  # in each anchor frame
        candidates = ((last - t) % self.stride == 0).repeat_interleave(n, 1) & ~salient & tokens.mask
        others = (~salient & tokens.mask).reshape(B * T, n)
        score = density_peaks(x.flatten(0, 1), others, self.neighbors).reshape(B, -1)
        peak = rank_within(-score, frame.masked_fill(~candidates, -1), T)
        anchor = candidates & (peak < num_anchors.repeat_interleave(n, 1))

        # The best remaining token of every frame first, then the second best, ...
        remaining = attended.masked_fill(salient | anchor | ~tokens.mask, T * n)
        order = remaining.argsort(dim=1, stable=True).argsort(dim=1)
        rest = order < (counts - (salient | anchor).sum(1))[:, None]
        return _Selection(salient, anchor, rest, num_anchors == context[:, None], first, last)

    def forward(self, tokens: Tokens, **cues: Any) -> Tokens:
        T, n = tokens.grid.T, tokens.grid.cells_per_frame
        with torch.no_grad():
            selection = self._select(tokens, **cues)
            unit = F.normalize(tokens.features.float(), dim=2).unflatten(1, (T, n))
        selected = selection.salient | selection.anchor | selection.rest
        # If all tokens of a video are selected, there is nothing to gather.
        some_unselected = (~selected & tokens.mask).any(1, keepdim=True)
        contributes = ~selection.salient & tokens.mask & some_unselected
        anchors = selection.anchor.unflatten(1, (T, n))
        features = tokens.features.float() if tokens.features.dtype != torch.float64 else tokens.features
        gathered, num_members = torch.zeros_like(features), torch.zeros_like(tokens.sizes)
        best = torch.full_like(tokens.sizes, -torch.inf)
        credited = torch.full_like(tokens.assignment[:, :1], -1).expand(-1, tokens.N).clone()
        own_frame = torch.arange(T, device=tokens.device)
        # The j-th anchor frame of every segment in parallel, counted from its end.
        # The longest segment sets the number of steps; a traced graph cannot read it from the data.
        longest = T if torch.compiler.is_compiling() else int((selection.last - selection.first + 1).max())
        for j in range(-(-longest // self.stride)):
            anchor_frame = selection.last - j * self.stride  # [B,T]
            inside = anchor_frame >= selection.first
            anchor_frame = anchor_frame.clamp(min=0)
            inside &= ~selection.alone.gather(1, anchor_frame) | (anchor_frame == own_frame)
            anchor_frame = anchor_frame[..., None]
            candidates = anchors.gather(1, anchor_frame.expand(-1, -1, n)) & inside[..., None]
            rows = take_rows(unit, anchor_frame[..., 0])
            similar, nearest = (unit @ rows.transpose(2, 3)).masked_fill(~candidates[:, :, None], -torch.inf).max(3)
            target = (anchor_frame * n + nearest).flatten(1)
            similar = similar.flatten(1)
            # An anchor of this frame is not gathered into another one.
            joins = contributes & (similar > -torch.inf) & ~(anchors & (anchor_frame == own_frame[:, None])).flatten(1)
            gathered = gathered.scatter_add(1, target[..., None].expand_as(features), features * joins[..., None])
            num_members = num_members.scatter_add(1, target, joins.float())
            closer = joins & (similar > best)
            best, credited = torch.where(closer, similar, best), torch.where(closer, target, credited)
        weight = (1 / (num_members + 2)).clamp(min=self.beta)[..., None]
        mixed = weight * features + (1 - weight) * (gathered + features) / (num_members[..., None] + 1)
        mixed = torch.where((num_members > 0)[..., None], mixed.to(tokens.features.dtype), tokens.features)
        plan = Plan.keep(selected, self.max_slots(tokens))
        assert plan.dest is not None
        dest = torch.where(selected | (credited < 0), plan.dest, plan.dest.gather(1, credited.clamp(min=0)))
        return (
            tokens.apply(Plan(plan.count, plan.num_slots, dest)).replace(features=plan.move(mixed)).sort_by_position()
        )
