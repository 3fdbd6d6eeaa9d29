"""FastVID: segments of like frames; in each frame the salient tokens, in each segment anchors that gather the rest."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from fewtokens.core.method import Method
from fewtokens.core.plan import Plan
from fewtokens.core.tokens import Tokens
from fewtokens.methods.ops.density import density_peaks
from fewtokens.methods.ops.segments import cut_where_frames_change, rank_within
from fewtokens.methods.ops.temporal import cosine


class _Choice(NamedTuple):
    salient: Tensor  # bool [B,N], drew attention
    anchor: Tensor  # bool [B,N]
    rest: Tensor  # bool [B,N], what fills up the budget
    alone: Tensor  # bool [B,T], anchor frames that gather their own tokens alone
    first: Tensor  # [B,T], of each frame's segment
    last: Tensor


class FastVid(Method):
    """The tokens that draw attention stay; the others are gathered by anchors, chosen by density in every fourth frame.

    FastVID (arXiv 2503.11187). The video is cut after a frame where its vector is among the `segments`-1 least like the
    next one's, or less like it than tau. Of each frame's budget a share `context` goes to anchors, the rest to the
    tokens with the most attention. Anchors stand in the frames of a segment counted from its end, every `stride`-th; in
    each such frame they are the density peaks of what is not salient, as many as the segment's share allows. For each
    anchor frame every token of the segment that is not salient, anchors of other frames among them, goes to its most
    similar anchor there, and an anchor becomes w * anchor + (1 - w) * mean(the n tokens: itself and what it gathered),
    w = max(1/(n+1), beta). An anchor frame with no more anchors than one frame's share (stride=1) gathers from itself
    alone, as in the published code.

    The count is exact: the published code loses up to a token for each frame and each anchor frame to rounding, and
    fails above a budget of about 0.45 and where no place of a frame falls to anchors. Here the places that are left go
    to the next tokens by attention, which come out as they are and are gathered all the same, so that the other rows
    are those of the published code. A budget of everything changes nothing. A token that feeds anchors of several
    frames is credited to the most similar one. Equal densities are ordered by place, not by added noise.

    Args:
        keep: share of the cells (float) or count (int).
        segments: c of the paper.
        tau: similarity of frames below which there is always a cut.
        context: d, share of the budget for anchors.
        stride: p, frames from anchor frame to anchor frame.
        beta: smallest weight of an anchor.
        neighbors: of the density.
    """

    paper = "FastVID: Dynamic Density Pruning for Fast Video Large Language Models, arXiv 2503.11187"
    license = "written from the description; reference MIT"
    cost = "O(T n^2 C T/stride) with n cells of a frame"
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
        self.take_budget(keep)
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

    def _choose(self, tokens: Tokens, attention: Tensor, frame_global: Tensor) -> _Choice:
        B, T, n = tokens.B, tokens.grid.T, tokens.grid.cells_per_frame
        x = tokens.require_full_grid(self.name).features.float().unflatten(1, (T, n))
        lengths = tokens.mask.unflatten(1, (T, n))[..., 0].sum(1)
        likeness = cosine(frame_global[:, :-1], frame_global[:, 1:])
        first, last = cut_where_frames_change(likeness, lengths, self.segments, self.tau)

        counts = self.counts(tokens)
        per_frame = counts // lengths.clamp(min=1)
        context = (per_frame.double() * self.context).long()  # cut off in double precision, as published
        frame = tokens.frame.masked_fill(~tokens.mask, -1)
        attended = rank_within(-attention.float(), frame, T)
        salient = (attended < (per_frame - context)[:, None]) & tokens.mask

        t = torch.arange(T, device=x.device)
        length = last - first + 1
        number = context[:, None] * length // -(-length // self.stride)  # of anchors in each anchor frame
        candidates = ((last - t) % self.stride == 0).repeat_interleave(n, 1) & ~salient & tokens.mask
        others = (~salient & tokens.mask).reshape(B * T, n)
        score = density_peaks(x.flatten(0, 1), others, self.neighbors).reshape(B, -1)
        peak = rank_within(-score, frame.masked_fill(~candidates, -1), T)
        anchor = candidates & (peak < number.repeat_interleave(n, 1))

        # First the best of every frame, then their second ...
        left = attended.masked_fill(salient | anchor | ~tokens.mask, T * n)
        order = left.argsort(dim=1, stable=True).argsort(dim=1)
        rest = order < (counts - (salient | anchor).sum(1))[:, None]
        return _Choice(salient, anchor, rest, number == context[:, None], first, last)

    def forward(self, tokens: Tokens, **cues: Any) -> Tokens:
        T, n = tokens.grid.T, tokens.grid.cells_per_frame
        with torch.no_grad():
            choice = self._choose(tokens, **cues)
            unit = F.normalize(tokens.features.float(), dim=2).unflatten(1, (T, n))
        chosen = choice.salient | choice.anchor | choice.rest
        # Where everything stays there is nothing to gather.
        something = (~chosen & tokens.mask).any(1, keepdim=True)
        feeds = ~choice.salient & tokens.mask & something
        anchors = choice.anchor.unflatten(1, (T, n))
        wide = tokens.features.float() if tokens.features.dtype != torch.float64 else tokens.features
        gathered, number = torch.zeros_like(wide), torch.zeros_like(tokens.sizes)
        best = torch.full_like(tokens.sizes, -torch.inf)
        to = torch.full_like(tokens.assignment[:, :1], -1).expand(-1, tokens.N).clone()
        own = torch.arange(T, device=tokens.device)
        # The j-th anchor frame of every segment at once, counted from its end.
        # As many as the longest segment has; a graph that is traced cannot look.
        longest = T if torch.compiler.is_compiling() else int((choice.last - choice.first + 1).max())
        for j in range(-(-longest // self.stride)):
            where = choice.last - j * self.stride  # [B,T]
            inside = where >= choice.first
            where = where.clamp(min=0)
            inside &= ~choice.alone.gather(1, where) | (where == own)
            where = where[..., None]
            there = anchors.gather(1, where.expand(-1, -1, n)) & inside[..., None]
            theirs = unit.gather(1, where[..., None].expand(-1, -1, n, unit.shape[3]))
            similar, nearest = (unit @ theirs.transpose(2, 3)).masked_fill(~there[:, :, None], -torch.inf).max(3)
            target = (where * n + nearest).flatten(1)
            similar = similar.flatten(1)
            # The anchors of this very frame are their own.
            goes = feeds & (similar > -torch.inf) & ~(anchors & (where == own[:, None])).flatten(1)
            rows = target[..., None].expand_as(wide)
            gathered = gathered.scatter_add(1, rows, wide * goes[..., None])
            number = number.scatter_add(1, target, goes.float())
            closer = goes & (similar > best)
            best, to = torch.where(closer, similar, best), torch.where(closer, target, to)
        weight = (1 / (number + 2)).clamp(min=self.beta)[..., None]
        mixed = weight * wide + (1 - weight) * (gathered + wide) / (number[..., None] + 1)
        mixed = torch.where((number > 0)[..., None], mixed.to(tokens.features.dtype), tokens.features)
        kept = Plan.keep(chosen, self.max_slots(tokens))
        assert kept.dest is not None
        dest = torch.where(chosen | (to < 0), kept.dest, kept.dest.gather(1, to.clamp(min=0)))
        return tokens.apply(Plan(kept.count, kept.num_slots, dest)).replace(features=kept.move(mixed)).ordered()
