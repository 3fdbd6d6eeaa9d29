"""CenterCLIP: the medoids of each short segment."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from fewtokens.core.grid import Grid
from fewtokens.core.method import Reducer
from fewtokens.core.plan import Plan
from fewtokens.core.tokens import Tokens

# Segments are clustered together as long as their tables of distances have at most this many entries (64 MiB).
_ENTRIES_AT_ONCE = 1 << 24


class CenterClip(Reducer):
    """All tokens of a few neighbouring frames are clustered, and each cluster is stood for by its medoid.

    CenterCLIP (arXiv 2205.00823), k-medoids: begun by KKZ (the token of the largest norm, then each time the one
    farthest from those chosen), Euclidean distances, until nothing changes. The budget is dealt out evenly over the
    segments, at least one token each.

    "spectral" clusters the tokens by the eigenvectors of their likeness instead: W = exp(-d^2 / 2 sigma^2) over a graph
    of each token's nearest `5 * frames` (5 more where a frame has 100 tokens), itself among them (symmetric), the
    normalised Laplacian's lowest ones, rows of length 1, k-medoids. It begins with the token that weighs most in them:
    the published code divides rows by their length plus 1e-6, which in float64 begins with the same token and in
    float32 with any.

    Args:
        keep: share of the cells (float) or count (int).
        frames: of a segment; 2 in the paper (12 frames, 6 segments).
        medoid: False gives the mean of each cluster instead.
        algorithm: "medoids" or "spectral".
        sigma: of the likeness; 2 in the paper, for the scale of CLIP's tokens. None is the median distance to the
            neighbors in the graph, so that features of any scale will do.
        iterations: at most.
    """

    paper = "CenterCLIP: Token Clustering for Efficient Text-Video Retrieval, arXiv 2205.00823"
    license = "written from the description; the reference code is CC BY-NC 4.0"
    cost = "O(T/frames * m^2 C) with m tokens of a segment; tables of m*m distances, in blocks of segments"
    full_grid = True

    def __init__(
        self,
        keep: float | int | str = 0.25,
        *,
        frames: int = 2,
        medoid: bool = True,
        algorithm: str = "medoids",
        sigma: float | None = None,
        iterations: int = 80,
    ) -> None:
        super().__init__()
        if algorithm not in ("medoids", "spectral"):
            raise ValueError(f"centerclip clusters by 'medoids' or 'spectral', not {algorithm!r}")
        if sigma is not None and (algorithm != "spectral" or sigma <= 0):
            raise ValueError(f"sigma is for algorithm='spectral' and above 0, got {sigma}")
        self.take_budget(keep)
        if frames < 1 or iterations < 0:
            raise ValueError(f"frames must be at least 1 and iterations at least 0, got {frames} and {iterations}")
        self.frames, self.medoid, self.iterations = frames, bool(medoid), iterations
        self.algorithm, self.sigma = algorithm, sigma

    def fewest(self, grid: Grid) -> int:
        return -(-grid.T // self.frames)

    def plan(self, tokens: Tokens) -> Plan:
        B, T, n = tokens.B, tokens.grid.T, tokens.grid.cells_per_frame
        x = tokens.require_full_grid(self.name).features.float()
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
        found = [self._medoids(*part) for part in zip(rows.split(step), real.split(step), k.split(step), strict=True)]
        owner = torch.cat(found).reshape(B, S, m)
        # Each token's medoid as a place in the video; medoids are their own.
        medoid = (owner + m * torch.arange(S, device=x.device)[:, None]).reshape(B, -1)[:, : tokens.N]
        if not self.medoid:
            return Plan.group(medoid, tokens, tokens.N)
        own = medoid == torch.arange(tokens.N, device=x.device)
        kept = Plan.keep(own & tokens.mask)
        assert kept.dest is not None
        dest = kept.dest.gather(1, medoid).masked_fill(~tokens.mask, -1)
        return Plan(kept.count, kept.num_slots, dest, kept.representative)

    def _medoids(self, x: Tensor, real: Tensor, k: Tensor) -> Tensor:
        """The medoid of each row's token, int64 [R,m]."""
        if self.algorithm == "medoids":
            return k_medoids(x, real, k, self.iterations)
        neighbors = 5 * self.frames + (5 if x.shape[1] >= 100 * self.frames else 0)
        rows = spectral_rows(x, real, k, neighbors, self.sigma)
        weight = rows.norm(dim=2)
        return k_medoids(rows / weight.clamp(min=1e-12)[..., None], real, k, self.iterations, weight)


def spectral_rows(x: Tensor, real: Tensor, k: Tensor, neighbors: int, sigma: float | None) -> Tensor:
    """Each token's entries in the k eigenvectors of the lowest eigenvalues, [R,m,max(k)], zero beyond a row's own k.

    Of the normalised Laplacian of W = exp(-d^2 / 2 sigma^2) between tokens of which one is among the `neighbors`
    nearest of the other; a token is its own first neighbour. Arguments as in `k_medoids` and `CenterClip`.
    """
    m = x.shape[1]
    distance = torch.cdist(x, x)
    distance.diagonal(dim1=1, dim2=2).zero_()  # a token is its own nearest neighbour, rounding or not
    distance = distance.masked_fill(~(real[:, :, None] & real[:, None]), torch.inf)
    near, index = distance.topk(min(neighbors, m), dim=2, largest=False)
    linked = torch.zeros_like(distance, dtype=torch.bool).scatter_(2, index, near.isfinite())
    linked = linked | linked.transpose(1, 2)
    near = near[..., 1:]
    if sigma is None:
        # The median of what is there: an even number gives the lower one, none gives 1.
        there = near.isfinite().flatten(1).sum(1)
        middle = near.flatten(1).sort(dim=1).values.gather(1, ((there - 1) // 2).clamp(min=0)[:, None])
        scale = torch.where(middle.isfinite() & (middle > 0), middle, 1.0)[..., None]
    else:
        scale = torch.full((len(x), 1, 1), sigma, device=x.device)
    weight = torch.where(linked, (-0.5 * (distance.masked_fill(~linked, 0) / scale).square()).exp(), 0.0)
    root = weight.sum(2).clamp(min=1e-12).rsqrt()
    laplacian = torch.diag_embed(torch.where(real, 1.0, 3.0)) - root[:, :, None] * weight * root[:, None]
    # Eigenvalues of real tokens are at most 2, so those of padded slots (3) come last.
    vectors = torch.linalg.eigh(laplacian).eigenvectors[..., : max(1, int(k.max()))]
    return vectors * (torch.arange(vectors.shape[2], device=x.device) < k[:, None])[:, None]


def k_medoids(x: Tensor, real: Tensor, k: Tensor, iterations: int, weight: Tensor | None = None) -> Tensor:
    """The medoid of each row's token, int64 [R,m]: clusters of Euclidean distance, begun by KKZ.

    Args:
        x: [R,m,C] float32. real: bool [R,m]. k: [R], clusters of each, at most its real tokens.
        weight: [R,m], the largest of which begins; the norms where not given.
    """
    R, m, _ = x.shape
    distance = torch.cdist(x, x, compute_mode="donot_use_mm_for_euclid_dist" if m <= 64 else "use_mm_for_euclid_dist")
    distance.diagonal(dim1=1, dim2=2).zero_()
    width = max(1, int(k.max()))
    slot = torch.arange(width, device=x.device)
    valid = slot < k[:, None]
    # KKZ: the largest norm, then farthest first.
    medoids = torch.zeros(R, width, dtype=torch.int64, device=x.device)
    medoids[:, 0] = (x.norm(dim=2) if weight is None else weight).masked_fill(~real, -1).argmax(1)
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
