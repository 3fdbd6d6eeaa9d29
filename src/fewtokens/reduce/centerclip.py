"""CenterCLIP: the medoids of each short segment."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from fewtokens.grid import Grid
from fewtokens.method import Method, check_keep, planned_count
from fewtokens.plan import Plan
from fewtokens.tokens import Tokens

# Segments are clustered together as long as their tables of distances have at most this many entries (64 MiB).
_ENTRIES_AT_ONCE = 1 << 24


class CenterClip(Method):
    """All tokens of a few neighbouring frames are clustered, and each cluster is stood for by its medoid.

    CenterCLIP (arXiv 2205.00823), k-medoids: begun by KKZ (the token of the largest norm, then each time the one
    farthest from those chosen), Euclidean distances, until nothing changes. The budget is dealt out evenly over the
    segments, at least one token each. (Its spectral variant is not here.)

    Args:
        keep: share of the cells (float) or count (int).
        frames: of a segment; 2 in the paper (12 frames, 6 segments).
        medoid: False gives the mean of each cluster instead.
        iterations: at most.
    """

    paper = "CenterCLIP: Token Clustering for Efficient Text-Video Retrieval, arXiv 2205.00823"
    licence = "written from the description; the reference code is CC BY-NC 4.0"
    cost = "O(T/frames * m^2 C) with m tokens of a segment; tables of m*m distances, in blocks of segments"
    partition = True
    dense = True

    def __init__(self, keep: float | int = 0.25, *, frames: int = 2, medoid: bool = True, iterations: int = 80) -> None:
        super().__init__()
        self.keep = check_keep(keep)
        if frames < 1 or iterations < 0:
            raise ValueError(f"frames must be at least 1 and iterations at least 0, got {frames} and {iterations}")
        self.frames, self.medoid, self.iterations = frames, bool(medoid), iterations

    def planned_count(self, grid: Grid) -> int:
        return max(-(-grid.T // self.frames), planned_count(grid, self.keep))

    def plan(self, tokens: Tokens) -> Plan:
        B, T, n = tokens.B, tokens.grid.T, tokens.grid.cells_per_frame
        x = tokens.whole_grid(self.name).features.float()
        S, m = -(-T // self.frames), self.frames * n
        padding = S * m - tokens.N
        rows = F.pad(x, (0, 0, 0, padding)).reshape(B * S, m, -1)
        real = F.pad(tokens.mask, (0, padding)).reshape(B * S, m)
        # Places in proportion to a segment's tokens, one of each beforehand.
        size = real.sum(1).reshape(B, S)
        counts = self.counts(tokens)[:, None]
        used = size > 0
        spare = (counts - used.sum(1, keepdim=True)) * (size - 1).clamp(min=0).cumsum(1)
        ends = spare // (size - 1).clamp(min=0).sum(1, keepdim=True).clamp(min=1)
        k = (ends.diff(dim=1, prepend=ends[:, :1] * 0) + used).flatten()
        step = max(1, _ENTRIES_AT_ONCE // (m * m))
        found = [
            k_medoids(*part, self.iterations)
            for part in zip(rows.split(step), real.split(step), k.split(step), strict=True)
        ]
        owner = torch.cat(found).reshape(B, S, m)
        # Each token's medoid as a place in the video; medoids are their own.
        medoid = (owner + m * torch.arange(S, device=x.device)[:, None]).reshape(B, -1)[:, : tokens.N]
        if not self.medoid:
            return Plan.group(medoid, tokens, tokens.N)
        own = medoid == torch.arange(tokens.N, device=x.device)
        kept = Plan.keep(own & tokens.mask)
        assert kept.dest is not None
        dest = kept.dest.gather(1, medoid).masked_fill(~tokens.mask, -1)
        return Plan(kept.count, kept.width, dest, kept.pick)


def k_medoids(x: Tensor, real: Tensor, k: Tensor, iterations: int) -> Tensor:
    """The medoid of each row's token, int64 [R,m]: clusters of Euclidean distance, begun by KKZ.

    Args:
        x: [R,m,C] float32. real: bool [R,m]. k: [R], clusters of each, at most its real tokens.
    """
    R, m, _ = x.shape
    distance = torch.cdist(x, x, compute_mode="donot_use_mm_for_euclid_dist" if m <= 64 else "use_mm_for_euclid_dist")
    distance.diagonal(dim1=1, dim2=2).zero_()
    width = max(1, int(k.max()))
    slot = torch.arange(width, device=x.device)
    valid = slot < k[:, None]
    # KKZ: the largest norm, then farthest first.
    medoids = torch.zeros(R, width, dtype=torch.int64, device=x.device)
    medoids[:, 0] = x.norm(dim=2).masked_fill(~real, -1).argmax(1)
    taken = torch.zeros_like(real).scatter_(1, medoids[:, :1], True)
    near = distance.gather(1, medoids[:, :1, None].expand(-1, -1, m))[:, 0]
    for number in range(1, width):
        medoids[:, number] = near.masked_fill(~real | taken, -1).argmax(1)
        chosen = medoids[:, number : number + 1]
        taken = taken.scatter(1, chosen, True)
        near = torch.minimum(near, distance.gather(1, chosen[..., None].expand(-1, -1, m))[:, 0])

    def assign(medoids: Tensor) -> Tensor:
        to = distance.gather(1, medoids[..., None].expand(-1, -1, m)).masked_fill(~valid[..., None], torch.inf)
        label = to.argmin(1)
        # A medoid stays in its own cluster even where another one is equal to it.
        mine = torch.full((R, m + 1), -1, dtype=torch.int64, device=x.device)
        mine.scatter_(1, medoids.masked_fill(~valid, m), slot.expand(R, -1))
        return torch.where(mine[:, :m] >= 0, mine[:, :m], label)

    label = assign(medoids)
    for _ in range(iterations):
        together = (label[:, :, None] == label[:, None]) & real[:, :, None]
        cost = (distance * together).sum(1).masked_fill(~real, torch.inf)
        least = torch.full((R, width), torch.inf, device=x.device).scatter_reduce(1, label, cost, "amin")
        place = torch.arange(m, device=x.device).expand(R, -1)
        best = torch.where(cost <= least.gather(1, label), place, m)
        moved = torch.full((R, width), m, device=x.device).scatter_reduce(1, label, best, "amin")
        moved = torch.where(valid, moved, medoids).clamp(max=m - 1)
        if bool((moved == medoids).all()):
            break
        medoids = moved
        label = assign(medoids)
    return medoids.gather(1, label)
