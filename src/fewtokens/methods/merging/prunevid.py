"""PruneVid before the language model: static places of like frames become one, and each set of tokens is clustered."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from fewtokens.core.method import Reducer
from fewtokens.core.plan import Plan
from fewtokens.core.tokens import Tokens
from fewtokens.methods.ops.density import around_peaks
from fewtokens.methods.ops.groups import follow, grouped, regroup, share_out, sizes_of

# Sets of at most so many tokens are left as they are.
_SMALL = 14


class PruneVid(Reducer):
    """Segments of like frames; what stays still in one is averaged over time; still and moving tokens are clustered.

    PruneVid (arXiv 2412.16117), stage A. Frames are clustered by density peaks of their mean features and the clusters
    made contiguous: of each cluster the longest runs stay, all of equal length, unless they are of one frame; what lies
    between goes to the longer neighbor, from left to right, ties to the left. A place is static where the
    mean cosine between the frames of its segment is above tau; a segment of one frame has none (there the reference
    divides 0 by 0). The static tokens of each segment and the dynamic ones of each frame are each clustered by density
    peaks to half, if there are more than 14. Equal densities are ordered by place, not by added noise.

    Args:
        keep: a budget instead of `ratio`: places are dealt to the sets in proportion to their sizes. At least one for
            each set; beyond that the sets of the last frames go without.
        tau: 0.8 in the paper.
        segments: clusters of frames, as a share of the frames; 0.25.
        ratio: clusters of a set, as a share of its tokens; 0.5 in the paper (None).
        neighbors: of both densities; 7.
    """

    paper = "PruneVid: Visual Token Pruning for Efficient Video Large Language Models, arXiv 2412.16117, stage A"
    license = "written from the description; the reference code is CC BY-NC-SA 4.0"
    cost = "O(T n^2 C)"
    full_grid = True

    def __init__(
        self,
        keep: float | int | str | None = None,
        *,
        tau: float = 0.8,
        segments: float = 0.25,
        ratio: float | None = None,
        neighbors: int = 7,
    ) -> None:
        super().__init__()
        self.take_budget(keep, ratio=ratio)
        ratio = 0.5 if ratio is None else ratio
        if not 0 < segments <= 1 or not 0 < ratio <= 1 or not -1 <= tau <= 1:
            raise ValueError(f"segments and ratio must be in (0, 1], tau in [-1, 1]; got {segments}, {ratio}, {tau}")
        if neighbors < 1:
            raise ValueError(f"neighbors must be at least 1 (the token itself), got {neighbors}")
        self.tau, self.segments, self.neighbors = float(tau), float(segments), neighbors
        self.ratio = None if self.budget else float(ratio)

    def plan(self, tokens: Tokens) -> Plan:
        T, n = tokens.grid.T, tokens.grid.cells_per_frame
        x = tokens.require_full_grid(self.name).features.float().unflatten(1, (T, n))
        there = tokens.mask.unflatten(1, (T, n))[..., 0]
        number = (there.sum(1) * self.segments + 1e-6).long().clamp(min=1)
        first = frame_segments(x.mean(2), there, number, self.neighbors)
        static = _static(x, first, there, self.tau)
        place = torch.arange(n, device=x.device)
        t = torch.arange(T, device=x.device)[:, None]
        if self.budget is not None:
            # A budget above what averaging over time leaves: static places go on their own, the last ones first.
            later = static & (first[..., None] < t)
            room = self.counts(tokens) - tokens.count + later.flatten(1).sum(1)
            back = later.flatten(1).flip(1).cumsum(1).flip(1)
            static = static & ~((back <= room[:, None]).unflatten(1, (T, n)) & later)
        home = torch.where(static, first[..., None] * n + place, t * n + place).flatten(1)
        averaged = Plan.group(home.masked_fill(~tokens.mask, -1), tokens, T * n)
        # Sets: the dynamic tokens of frame t are T + t, the static ones of the segment that begins at t are t.
        of = torch.where(static, first[..., None], T + t).flatten(1)
        fewer = tokens.apply(averaged)
        group = follow(averaged, of, fewer)
        size = sizes_of(group, 2 * T)
        if self.ratio is not None:
            counts = torch.where(size > _SMALL, (size * self.ratio + 1e-6).long().clamp(min=1), size)
        else:
            counts = share_out(self.counts(tokens), size)
        return averaged.then(_cluster(fewer, group, counts, self.neighbors))


def frame_segments(vectors: Tensor, there: Tensor, number: Tensor, neighbors: int) -> Tensor:
    """Contiguous clusters of frames by density peaks: the first frame of each frame's segment, int64 [B,T].

    Args:
        vectors: [B,T,C]. there: bool [B,T], real frames. number: [B], clusters.
    """
    label, _ = around_peaks(vectors, there, number, neighbors)
    return contiguous(label.masked_fill(~there, vectors.shape[1]), there)


def contiguous(label: Tensor, there: Tensor) -> Tensor:
    """Labels of frames made contiguous: the first frame of each frame's segment, int64 [B,T].

    The longest runs of every label stay, all of equal length, unless they are of one frame. Each stretch of the other
    frames goes to the longer of its neighbors, from left to right, the left one of equals; where nothing stays all is
    one segment. Frames that are not there are segments of their own.

    Args:
        label: int64 [B,T], 0..T, T where there is no frame. there: bool [B,T], real frames first.
    """
    B, T = label.shape
    t = torch.arange(T, device=label.device).expand(B, -1)
    length = _run_lengths(label)
    longest = torch.zeros(B, T + 1, dtype=torch.int64, device=label.device).scatter_reduce(1, label, length, "amax")
    stays = (length == longest.gather(1, label)) & (length > 1) & there
    # A stretch takes one of the labels beside it; nothing is beside the video.
    left = label.gather(1, t.masked_fill(~stays, -1).cummax(1).values.clamp(min=0))
    next_kept = t.masked_fill(~stays, T).flip(1).cummin(1).values.flip(1)
    right = label.gather(1, next_kept.clamp(max=T - 1))
    some_left = stays.cummax(1).values
    some_right = next_kept < T
    on_right = length.gather(1, next_kept.clamp(max=T - 1))
    begins = ~stays & F.pad(stays[:, :-1], (1, 0), value=True)
    out = label.masked_fill(~stays, -1)
    # What a stretch joins lengthens the left neighbor of the next one, so they are decided in turn.
    for number in range(int(begins.sum(1).max())):
        mine = (begins.cumsum(1) == number + 1) & ~stays & there
        at = mine.to(torch.uint8).argmax(1, keepdim=True)
        before = out.masked_fill(t >= at, -2)
        tail = (before.gather(1, (at - 1).clamp(min=0)) != before) & (t < at)
        on_left = at - 1 - t.masked_fill(~tail, -1).amax(1, keepdim=True)
        goes_right = some_right & (~some_left | (on_right > on_left))
        joined = torch.where(goes_right, right, torch.where(some_left, left, 0))
        out = torch.where(mine, joined, out)
    ends = F.pad(out[:, 1:] != out[:, :-1], (1, 0), value=True) | ~there
    return t.masked_fill(~ends, 0).cummax(1).values


def _run_lengths(label: Tensor) -> Tensor:
    """How long the run of equal labels around each frame is, int64 [B,T]."""
    begins = F.pad(label[:, 1:] != label[:, :-1], (1, 0), value=True)
    run = begins.cumsum(1) - 1
    return torch.zeros_like(label).scatter_add(1, run, torch.ones_like(label)).gather(1, run)


def _static(x: Tensor, first: Tensor, there: Tensor, tau: float) -> Tensor:
    """Places whose mean cosine between the frames of their segment is above tau, bool [B,T,n].

    Of l unit vectors the sum of all pairs is (|sum|^2 - l) / 2, so no pair is looked at.
    """
    # Zero vectors are equal to one another and unlike everything else.
    unit = torch.cat([F.normalize(x, dim=3), (x == 0).all(3, keepdim=True).float()], 3)
    unit = unit * there[..., None, None]
    into = first[..., None].expand(-1, -1, x.shape[2])
    total = torch.zeros_like(unit).scatter_add_(1, into[..., None].expand_as(unit), unit)
    length = torch.zeros_like(first).scatter_add(1, first, there.long())[..., None]
    mean = (total.square().sum(3) - length) / (length * (length - 1)).clamp(min=1)
    return ((mean > tau) & (length > 1)).gather(1, into) & there[..., None]


def _cluster(tokens: Tokens, group: Tensor, counts: Tensor, neighbors: int) -> Plan:
    """Clusters each group around its `counts` [B,groups] density peaks; a group without places is dropped."""
    parts, slot = grouped(tokens, group, counts.shape[1])
    label, count = around_peaks(parts.features, parts.mask, counts.flatten(), neighbors)
    label = label.masked_fill(~parts.mask | (count == 0)[:, None], -1)
    return regroup(label, slot, group, tokens)
