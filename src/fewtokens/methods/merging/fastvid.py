"""FastVID: segments of similar frames; the salient tokens of each frame, and anchors that gather the other tokens."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from fewtokens.core.attention_rule import AttentionRule
from fewtokens.core.method import Method
from fewtokens.core.plan import Plan, flat_rows, mask_indices, take_rows
from fewtokens.core.tokens import Tokens
from fewtokens.methods.ops.density import density_peaks
from fewtokens.methods.ops.groups import Pack, packs
from fewtokens.methods.ops.segments import cut_where_frames_change, rank_within
from fewtokens.methods.ops.temporal import cosine

# Tokens are compared with their anchors in blocks of this many frames.
_FRAMES = 8


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

    Most of the cost are the similarities of tokens and anchors: 1.5 % (384 channels) to 2.5 % (896) of the time in
    which a ViT-S/14 encodes 32 frames, and up to 4 % at 128 frames, whose segments are longer.

    Args:
        keep: budget, a fraction of the cells (float), a count (int) or "8/frame". Default: 0.25.
        segments: minimum number of segments, c in the paper. Default: 8, as in the paper, and one per 16 frames of a
            video of more than 128 frames, so that the cost is linear in time.
        tau: similarity of consecutive frames below which the video is always cut, in [-1, 1]. Default: 0.9.
        context: fraction of the budget for anchors, d in the paper, in [0, 1]. Default: 0.4.
        stride: frames from one anchor frame to the next, p in the paper. Default: 4.
        beta: minimum weight of an anchor, in [0, 1]. Default: 0.6.
        neighbors: number of nearest tokens that define the density. Default: 4.
        attention: which attention of the tower of a language model, such as "received" or "class@-2", see
            `AttentionRule`. Default: that of the class token, else of SigLIP's pooling head, else of the mean query of
            a frame; the last two as published for LLaVA and Qwen2.5-VL.
    """

    paper = "FastVID: Dynamic Density Pruning for Fast Video Large Language Models, arXiv 2503.11187"
    license = "written from the description; reference code MIT"
    cost = "O(T n K C) with n cells per frame and K anchors per segment"
    full_grid = True
    published_attention = AttentionRule(("class", "probe", "mean_query"))

    def __init__(
        self,
        keep: float | int | str = 0.25,
        *,
        segments: int | None = None,
        tau: float = 0.9,
        context: float = 0.4,
        stride: int = 4,
        beta: float = 0.6,
        neighbors: int = 4,
        attention: str | None = None,
    ) -> None:
        super().__init__()
        self.set_budget(keep)
        self.attention, self.attention_rule = attention, self.published_attention.override(attention)
        if min(1 if segments is None else segments, stride, neighbors) < 1:
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
        T, n = tokens.grid.T, tokens.grid.cells_per_frame
        lengths = tokens.mask.unflatten(1, (T, n))[..., 0].sum(1)
        similarity = cosine(frame_global[:, :-1], frame_global[:, 1:])
        segments = (
            lengths.add(15).div(16, rounding_mode="floor").clamp(min=8) if self.segments is None else self.segments
        )
        first, last = cut_where_frames_change(similarity, lengths, segments, self.tau)

        counts = self.counts(tokens)
        per_frame = counts // lengths.clamp(min=1)
        context = (per_frame.double() * self.context).long()  # rounded down in double precision, as published
        frame = tokens.frame.masked_fill(~tokens.mask, -1)
        attended = rank_within(-attention.float(), frame, T)
        salient = (attended < (per_frame - context)[:, None]) & tokens.mask

        t = torch.arange(T, device=tokens.device)
        length = last - first + 1
        num_anchors = context[:, None] * length // -(-length // self.stride)  # in each anchor frame
        candidates = ((last - t) % self.stride == 0).repeat_interleave(n, 1) & ~salient & tokens.mask
        group = frame.masked_fill(~candidates, -1)
        score = self._density(tokens.features, group, T)
        peak = rank_within(-score, group, T)
        anchor = candidates & (peak < num_anchors.repeat_interleave(n, 1))

        # The best remaining token of every frame first, then the second best, ...
        remaining = attended.masked_fill(salient | anchor | ~tokens.mask, T * n)
        order = remaining.argsort(dim=1, stable=True).argsort(dim=1)
        rest = order < (counts - (salient | anchor).sum(1))[:, None]
        return _Selection(salient, anchor, rest, num_anchors == context[:, None], first, last)

    def _density(self, features: Tensor, frame: Tensor, frames: int) -> Tensor:
        """The density-peak score of each token among those of its frame, [B,N]; `frame` is -1 for the others."""
        (B, N), x = frame.shape, features.float().flatten(0, 1)
        if torch.compiler.is_compiling():  # a traced graph cannot read sizes from the data
            rows = x.unflatten(0, (B * frames, -1))
            return density_peaks(rows, frame.reshape(B * frames, -1) >= 0, self.neighbors).reshape(B, N)
        score = x.new_zeros(B * N)
        for pack in packs(frame, frames):
            pack.write(score, density_peaks(pack.rows(x), pack.real, self.neighbors))
        return score.unflatten(0, (B, N))

    def forward(self, tokens: Tokens, **cues: Any) -> Tokens:
        with torch.no_grad():
            selection = self._select(tokens, **cues)
        selected = selection.salient | selection.anchor | selection.rest
        cell, mixed, credited = self._gather(tokens, selection, selected)
        plan = Plan.keep(selected, self.max_slots(tokens))
        assert plan.dest is not None
        dest = torch.where(selected | (credited < 0), plan.dest, plan.dest.gather(1, credited.clamp(min=0)))
        # The rows of anchors replace those that are kept; padding goes to an extra row.
        M = plan.num_slots
        slot = plan.dest.gather(1, cell.clamp(min=0)).masked_fill(cell < 0, M)
        kept = F.pad(plan.copy(tokens.features), (0, 0, 0, 1)).flatten(0, 1)
        features = kept.index_copy(0, flat_rows(slot, M + 1), mixed.flatten(0, 1)).unflatten(0, (-1, M + 1))[:, :M]
        empty = tokens.replace(features=tokens.features[..., :0])
        return empty.apply(Plan(plan.count, M, dest)).replace(features=features).sort_by_position()

    def _gather(self, tokens: Tokens, selection: _Selection, selected: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Mixes every anchor with the tokens that it gathers.

        Returns:
            The cell of each anchor, int64 [B,A], -1 for padding; their features, [B,A,C]; and the cell of the anchor
            that each token is credited to, int64 [B,N], -1 for none.
        """
        B, T, n = tokens.B, tokens.grid.T, tokens.grid.cells_per_frame
        traced = torch.compiler.is_compiling()
        x = tokens.features.float() if tokens.features.dtype != torch.float64 else tokens.features
        flat = x.flatten(0, 1)
        # Anchors are packed: those of one frame are one row of K, those of a video are A rows.
        anchor = selection.anchor.unflatten(1, (T, n))
        is_any_anchor, per_frame = anchor.flatten(), anchor.sum(2)
        # Products are fastest for multiples of 16.
        K = n if traced else min(n, -(-int(per_frame.max()) // 16) * 16)
        row_frame = mask_indices(per_frame > 0)  # [B,A]
        A = row_frame.shape[1]
        if A == 0:
            return tokens.assignment[:, :0], tokens.features[:, :0], torch.full_like(tokens.assignment, -1)
        row_of = row_frame.new_zeros(B, T).scatter_(1, row_frame, torch.arange(A, device=x.device).expand(B, -1))
        place = (~take_rows(anchor, row_frame)).to(torch.uint8).argsort(dim=2, stable=True)[..., :K]  # [B,A,K]
        num_anchors = per_frame.gather(1, row_frame)
        real = torch.arange(K, device=x.device) < num_anchors[..., None]
        # Padding repeats the first anchor.
        cell = row_frame[..., None] * n + torch.where(real, place, place[..., :1])
        centers = take_rows(x, cell.flatten(1))  # [B,A*K,C]
        num_anchors = num_anchors.flatten()
        with torch.no_grad():
            unit = F.normalize(centers, dim=2).reshape(B * A, K, -1)

        # If all tokens of a video are selected, there is nothing to gather.
        some_unselected = (~selected & tokens.mask).any(1, keepdim=True)
        contributes = (~selection.salient & tokens.mask & some_unselected).flatten()
        gathered, num_members = x.new_zeros(B * A * K + 1, x.shape[2]), x.new_zeros(B * A * K + 1)
        credited = torch.full((B * T * n + 1,), -1, device=x.device)
        # The frames that gather from each other: a segment, or an anchor frame that gathers only its own tokens.
        frame = torch.arange(T, device=x.device)
        first, last = (torch.where(selection.alone, frame, edge) for edge in (selection.first, selection.last))
        if traced:  # a traced graph cannot read sizes from the data
            every = torch.arange(B * T * n, device=x.device).unflatten(0, (B * T, n))
            groups = iter([Pack(torch.arange(B * T, device=x.device), every, tokens.mask.reshape(B * T, n))])
        else:
            groups = packs(first.repeat_interleave(n, 1), T)
        for pack in groups:
            longest = T if traced else pack.index.shape[1] // n
            video, begin, end = pack.group // T, first.flatten()[pack.group], last.flatten()[pack.group]
            for index, exists in zip(pack.index.split(_FRAMES * n, 1), pack.real.split(_FRAMES * n, 1), strict=True):
                rows = Pack(pack.group, index, exists).rows(flat)
                own_frame = index // n
                available = exists & contributes[index]
                closest, to = x.new_full(index.shape, -torch.inf), torch.full_like(index, -1)
                # The j-th anchor frame of every segment, counted from its end.
                for j in range(-(-longest // self.stride)):
                    anchor_frame = (end - j * self.stride).clamp(min=0) + video * T
                    gathers = (end - j * self.stride >= begin) & (per_frame.flatten()[anchor_frame] > 0)
                    row = video * A + row_of.flatten()[anchor_frame]
                    with torch.no_grad():
                        similar, nearest = (rows @ unit.index_select(0, row).transpose(1, 2)).max(2)
                    # The padding is as similar as the first anchor up to rounding.
                    nearest = nearest.masked_fill(nearest >= num_anchors[row, None], 0)
                    target = row[:, None] * K + nearest
                    # An anchor of this frame is not gathered into another one.
                    is_anchor = is_any_anchor[index] & (own_frame == anchor_frame[:, None])
                    joins = available & gathers[:, None] & ~is_anchor
                    dest = target.masked_fill(~joins, B * A * K).flatten()
                    gathered.index_add_(0, dest, rows.flatten(0, 1))
                    num_members.index_add_(0, dest, joins.flatten().to(x.dtype))
                    # A token is credited to its most similar anchor.
                    closer = joins & (similar > closest)
                    closest = torch.where(closer, similar, closest)
                    to = torch.where(closer, cell.flatten()[target], to)
                credited[index.masked_fill(~exists, B * T * n)] = to
        gathered, num_members = gathered[:-1].reshape_as(centers), num_members[:-1].reshape(B, A * K, 1)
        weight = (1 / (num_members + 2)).clamp(min=self.beta)
        mixed = weight * centers + (1 - weight) * (gathered + centers) / (num_members + 1)
        mixed = torch.where(num_members > 0, mixed, centers).to(tokens.features.dtype)
        return cell.masked_fill(~real, -1).flatten(1), mixed, credited[:-1].reshape(B, T * n)
