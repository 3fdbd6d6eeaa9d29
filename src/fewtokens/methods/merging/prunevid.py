"""PruneVid before the language model: static positions of similar frames merge, then sets of tokens are clustered."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from fewtokens.core.method import Reducer
from fewtokens.core.plan import Plan, group_count, group_sum, weighted_group_sum
from fewtokens.core.tokens import Tokens
from fewtokens.methods.ops.density import cluster_around_peaks
from fewtokens.methods.ops.groups import allocate, average, packs
from fewtokens.methods.ops.temporal import in_blocks

# Sets of at most this many tokens are not clustered.
_SMALL = 14


class PruneVid(Reducer):
    """Averages static positions of each segment over time, then clusters tokens.

    PruneVid (arXiv 2412.16117), stage A. Frames are clustered by density peaks of their mean features, and the clusters
    made contiguous: the longest runs of each cluster (all of equal length) are kept unless they have only one frame;
    the frames between them join the longer neighbor, from left to right, ties to the left. A position is static if the
    mean cosine between the frames of its segment is above tau; a segment of one frame has none (the reference code
    divides 0 by 0). The static tokens of each segment and the dynamic tokens of each frame are each clustered by
    density peaks to half their number, if there are more than 14. Equal densities are ordered by position, not by added
    noise. If little is static, distances within frames cost 2 % (384 channels) to 3 % (896) of the time in which a
    ViT-S/14 encodes the frames.

    Args:
        keep: budget in place of `ratio`, a fraction of the cells (float), a count (int) or "8/frame", split over the
            sets in proportion to their sizes, at least one token per set; if the budget has fewer tokens than there are
            sets, the sets of the last frames are dropped.
        tau: cosine above which a position is static, in [-1, 1]. Default: 0.8, as in the paper.
        segments: number of clusters of frames, as a fraction of the frames in (0, 1]. Default: 0.25.
        ratio: number of clusters of a set, as a fraction of its tokens in (0, 1]. Default: 0.5, as in the paper.
        neighbors: number of nearest elements that define both densities. Default: 7.
    """

    paper = "PruneVid: Visual Token Pruning for Efficient Video Large Language Models, arXiv 2412.16117, stage A"
    license = "written from the description; the reference code is CC BY-NC-SA 4.0"
    cost = "O(T n^2 C) with n cells per frame"
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
        self.set_budget(keep, ratio=ratio)
        ratio = 0.5 if ratio is None else ratio
        if not 0 < segments <= 1 or not 0 < ratio <= 1 or not -1 <= tau <= 1:
            raise ValueError(f"segments and ratio must be in (0, 1] and tau in [-1, 1], got {segments}, {ratio}, {tau}")
        if neighbors < 1:
            raise ValueError(f"neighbors must be at least 1 (the token itself), got {neighbors}")
        self.tau, self.segments, self.neighbors = float(tau), float(segments), neighbors
        self.ratio = None if self.budget else float(ratio)

    def plan(self, tokens: Tokens) -> Plan:
        T, n = tokens.grid.T, tokens.grid.cells_per_frame
        x = tokens.features.float().unflatten(1, (T, n))
        real_frames = tokens.mask.unflatten(1, (T, n))[..., 0]
        num_segments = (real_frames.sum(1) * self.segments + 1e-6).long().clamp(min=1)
        first = frame_segments(x.mean(2), real_frames, num_segments, self.neighbors)
        static = _static_positions(x, first, real_frames, self.tau)
        position = torch.arange(n, device=x.device)
        t = torch.arange(T, device=x.device)[:, None]
        if self.budget is not None:
            # If the budget exceeds what averaging over time leaves, static positions remain separate, the last first.
            later = static & (first[..., None] < t)
            remaining = self.counts(tokens) - tokens.count + later.flatten(1).sum(1)
            rank_from_end = later.flatten(1).flip(1).cumsum(1).flip(1)
            static = static & ~((rank_from_end <= remaining[:, None]).unflatten(1, (T, n)) & later)
        # Sets: T + t for the dynamic tokens of frame t, t for the static tokens of the segment that starts at t.
        at_first = static & (first[..., None] == t)
        dynamic = ~static & real_frames[..., None]
        group = torch.where(dynamic, T + t, torch.where(at_first, t, -1)).flatten(1)
        size = group_count(group, 2 * T)
        if self.ratio is not None:
            counts = torch.where(size > _SMALL, (size * self.ratio + 1e-6).long().clamp(min=1), size)
        else:
            counts = allocate(self.counts(tokens), size)
        # The label of a token is a cell of its set; static tokens have the label of their first frame.
        own = torch.where(static, first[..., None] * n + position, t * n + position).flatten(1)
        averaged = own.masked_fill(~static.flatten(1), -1)
        label = self._cluster(tokens.features, group, counts, averaged)
        label = label.gather(1, own).masked_fill(~tokens.mask, -1)
        return Plan.group(label, tokens, T * n)

    def _cluster(self, features: Tensor, group: Tensor, counts: Tensor, averaged: Tensor) -> Tensor:
        """Clusters each set around its density peaks: labels in 0..N-1 of the tokens in sets, int64 [B,N]; -1 to drop.

        Args:
            features: [B,N,C].
            group: int64 [B,N], the set of each token; -1 for none.
            counts: int64 [B,groups], number of clusters of each set.
            averaged: int64 [B,N], the token of a set that is the mean of this and other tokens; -1 for tokens that are
                not averaged.
        """
        (B, N), groups = group.shape, counts.shape[1]
        size, allowed = (x.gather(1, group.clamp(min=0)) for x in (group_count(group, groups), counts))
        clustered = (group >= 0) & (allowed > 0) & (allowed < size)
        # In a set with as many clusters as tokens, each token is one.
        label = (
            torch.arange(N, device=group.device).expand(B, -1).masked_fill((group < 0) | (allowed == 0), -1).flatten()
        )
        means, mean_at = average(features, averaged)
        is_mean = averaged >= 0
        for values, at, members in (
            (features.float().flatten(0, 1), None, clustered & ~is_mean),
            (means, mean_at, clustered & is_mean),
        ):
            for pack in packs(group.masked_fill(~members, -1), groups):
                limit = counts.flatten()[pack.group]
                cluster, _ = cluster_around_peaks(pack.rows(values, at), pack.real, limit, self.neighbors)
                pack.write(label, pack.index.gather(1, cluster.masked_fill(~pack.real, 0)) % N)
        return label.unflatten(0, (B, N))


def frame_segments(vectors: Tensor, real_frames: Tensor, num_segments: Tensor, neighbors: int) -> Tensor:
    """Contiguous clusters of frames by density peaks: the first frame of each frame's segment, int64 [B,T].

    Args:
        vectors: [B,T,C].
        real_frames: bool [B,T].
        num_segments: [B].
        neighbors: number of nearest frames that define the density.
    """
    label, _ = cluster_around_peaks(vectors, real_frames, num_segments, neighbors)
    return make_contiguous(label.masked_fill(~real_frames, vectors.shape[1]), real_frames)


def make_contiguous(label: Tensor, real_frames: Tensor) -> Tensor:
    """Makes labels of frames contiguous: the first frame of each frame's segment, int64 [B,T].

    The longest runs of each label (all of equal length) are kept unless they have only one frame. Each stretch of other
    frames joins the longer of its neighbors, from left to right, ties to the left; if nothing is kept, the video is one
    segment. Each padded frame is a separate segment.

    Args:
        label: int64 [B,T], 0..T; T for padded frames.
        real_frames: bool [B,T], real frames first.
    """
    B, T = label.shape
    t = torch.arange(T, device=label.device).expand(B, -1)
    length = _run_lengths(label)
    longest = torch.zeros(B, T + 1, dtype=torch.int64, device=label.device).scatter_reduce(1, label, length, "amax")
    survives = (length == longest.gather(1, label)) & (length > 1) & real_frames
    # A stretch takes the label of one of its neighbors; at the ends of the video it has only one.
    left = label.gather(1, t.masked_fill(~survives, -1).cummax(1).values.clamp(min=0))
    next_run = t.masked_fill(~survives, T).flip(1).cummin(1).values.flip(1)
    right = label.gather(1, next_run.clamp(max=T - 1))
    some_left = survives.cummax(1).values
    some_right = next_run < T
    on_right = length.gather(1, next_run.clamp(max=T - 1))
    begins = ~survives & F.pad(survives[:, :-1], (1, 0), value=True)
    out = label.masked_fill(~survives, -1)
    # A stretch that joins a run changes the left neighbor of the next stretch, so they are decided in order.
    for index in range(int(begins.sum(1).max())):
        stretch = (begins.cumsum(1) == index + 1) & ~survives & real_frames
        start = stretch.to(torch.uint8).argmax(1, keepdim=True)
        labels_before = out.masked_fill(t >= start, -2)
        tail = (labels_before.gather(1, (start - 1).clamp(min=0)) != labels_before) & (t < start)
        on_left = start - 1 - t.masked_fill(~tail, -1).amax(1, keepdim=True)
        joins_right = some_right & (~some_left | (on_right > on_left))
        new_label = torch.where(joins_right, right, torch.where(some_left, left, 0))
        out = torch.where(stretch, new_label, out)
    ends = F.pad(out[:, 1:] != out[:, :-1], (1, 0), value=True) | ~real_frames
    return t.masked_fill(~ends, 0).cummax(1).values


def _run_lengths(label: Tensor) -> Tensor:
    """The length of the run of equal labels around each frame, int64 [B,T]."""
    begins = F.pad(label[:, 1:] != label[:, :-1], (1, 0), value=True)
    run = begins.cumsum(1) - 1
    return torch.zeros_like(label).scatter_add(1, run, torch.ones_like(label)).gather(1, run)


def _static_positions(x: Tensor, first: Tensor, real_frames: Tensor, tau: float) -> Tensor:
    """Positions whose mean cosine between the frames of their segment is above tau, bool [B,T,n].

    For l unit vectors the sum over all pairs is (|sum|^2 - l) / 2, so no pair is computed.
    """
    T, n = x.shape[1:3]
    t = torch.arange(T, device=x.device)
    length = torch.zeros_like(first).scatter_add(1, first, real_frames.long())  # by first frame
    # Segments of one frame have no static positions and are not summed.
    several = (length.gather(1, first) > 1) & real_frames
    begins = several & (first == t)
    segment = begins.cumsum(1) - 1  # within a segment of several frames, its number
    segments = max(1, int(begins.sum(1).max()))
    norm = in_blocks(lambda rows, _: rows.norm(dim=-1), x, x)
    inverse = torch.where(norm > 0, 1 / norm, 0)
    dest = (segment[..., None] * n + torch.arange(n, device=x.device)).masked_fill(~several[..., None], -1).flatten(1)
    total = weighted_group_sum(x.flatten(1, 2), inverse.flatten(1), dest, segments * n)
    # Zero vectors equal each other and are dissimilar to everything else.
    zeros = group_sum((norm == 0).float().flatten(1)[..., None], dest, segments * n)
    pairs = (total.square().sum(2) + zeros.square().squeeze(2)).gather(1, dest.clamp(min=0)).unflatten(1, (T, n))
    own_length = length.gather(1, first)[..., None]
    mean = (pairs - own_length) / (own_length * (own_length - 1)).clamp(min=1)
    return (mean > tau) & several[..., None]
