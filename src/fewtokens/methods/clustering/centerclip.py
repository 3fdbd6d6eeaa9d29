"""CenterCLIP: the medoids of each short segment."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from fewtokens.core.grid import Grid
from fewtokens.core.method import Reducer
from fewtokens.core.plan import Plan, take_rows
from fewtokens.core.tokens import Tokens

# Segments are clustered together in batches whose distance matrices have at most this many entries (64 MiB).
_MAX_BLOCK_ENTRIES = 1 << 24


class CenterClip(Reducer):
    """Clusters the tokens of each short segment and keeps the cluster medoids.

    CenterCLIP (arXiv 2205.00823), k-medoids with Euclidean distances, initialized by KKZ (the token with the largest
    norm, then repeatedly the token farthest from those selected) and iterated until nothing changes. The budget is
    split evenly over the segments, at least one token each.

    "spectral" clusters the tokens by the eigenvectors of their similarity graph instead: W = exp(-d^2 / 2 sigma^2) over
    the symmetric graph of each token's `5 * frames` nearest neighbors (5 more if a frame has at least 100 tokens), the
    token itself included; then k-medoids on the rows, scaled to length 1, of the eigenvectors of the normalized
    Laplacian with the lowest eigenvalues. Initialization starts at the token whose row has the largest norm: the
    published code divides rows by their norm plus 1e-6, which starts at the same token in float64 and at an arbitrary
    one in float32.

    It takes 3 % of the time of a ViT-S/14 for the same frames (32 of 14x14 tokens; 8 % for "spectral"), since medoids
    are initialized sequentially.

    Args:
        keep: budget, a fraction of the cells (float), a count (int) or "8/frame". Default: 0.25.
        frames: frames per segment. Default: 2, as in the paper (12 frames, 6 segments).
        medoid: keep medoids; False returns the mean of each cluster instead. Default: True.
        algorithm: "medoids" (default) or "spectral".
        sigma: scale of the similarity, for "spectral" only; 2 in the paper, which fits CLIP's features. Default: None,
            the median distance between neighbors in the graph, which works for features of any scale.
        iterations: maximum number of k-medoids iterations. Default: 80.
    """

    paper = "CenterCLIP: Token Clustering for Efficient Text-Video Retrieval, arXiv 2205.00823"
    license = "written from the description; the reference code is CC BY-NC 4.0"
    cost = "O(T/frames * m^2 C) with m tokens per segment; m x m distance matrices, in blocks of segments"
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
            raise ValueError(f"centerclip: algorithm must be 'medoids' or 'spectral', got {algorithm!r}")
        if sigma is not None and (algorithm != "spectral" or sigma <= 0):
            raise ValueError(f"sigma requires algorithm='spectral' and must be above 0, got {sigma}")
        self.set_budget(keep)
        if frames < 1 or iterations < 0:
            raise ValueError(f"frames must be at least 1 and iterations at least 0, got {frames} and {iterations}")
        self.frames, self.medoid, self.iterations = frames, bool(medoid), iterations
        self.algorithm, self.sigma = algorithm, sigma

    def min_count(self, grid: Grid) -> int:
        return -(-grid.T // self.frames)

    def plan(self, tokens: Tokens) -> Plan:
        B, T, n = tokens.B, tokens.grid.T, tokens.grid.cells_per_frame
        x = tokens.features.float()
        S, m = -(-T // self.frames), self.frames * n
        padding = S * m - tokens.N
        rows = F.pad(x, (0, 0, 0, padding)).reshape(B * S, m, -1)
        real = F.pad(tokens.mask, (0, padding)).reshape(B * S, m)
        # The budget is split in proportion to a segment's tokens, after one token for each.
        size = real.sum(1).reshape(B, S)
        counts = self.counts(tokens)[:, None]
        used = size > 0
        spare = (counts - used.sum(1, keepdim=True)) * (size - 1).clamp(min=0).cumsum(1)
        ends = spare // (size - 1).clamp(min=0).sum(1, keepdim=True).clamp(min=1)
        k = (ends.diff(dim=1, prepend=ends[:, :1] * 0) + used).flatten()
        step = max(1, _MAX_BLOCK_ENTRIES // (m * m))
        blocks = zip(rows.split(step), real.split(step), k.split(step), strict=True)
        owner = torch.cat([self._medoids(*block) for block in blocks]).reshape(B, S, m)
        # Each token's medoid as an index into the video; a medoid is its own medoid.
        medoid = (owner + m * torch.arange(S, device=x.device)[:, None]).reshape(B, -1)[:, : tokens.N]
        if not self.medoid:
            return Plan.group(medoid, tokens, tokens.N)
        own = medoid == torch.arange(tokens.N, device=x.device)
        medoids = Plan.keep(own & tokens.mask)
        assert medoids.dest is not None
        dest = medoids.dest.gather(1, medoid).masked_fill(~tokens.mask, -1)
        return Plan(medoids.count, medoids.num_slots, dest, medoids.representative)

    def _medoids(self, x: Tensor, real: Tensor, k: Tensor) -> Tensor:
        """The index of each token's medoid within its row, int64 [R,m]."""
        if self.algorithm == "medoids":
            return k_medoids(x, real, k, self.iterations)
        neighbors = 5 * self.frames + (5 if x.shape[1] >= 100 * self.frames else 0)
        rows = spectral_rows(x, real, k, neighbors, self.sigma)
        weight = rows.norm(dim=2)
        return k_medoids(rows / weight.clamp(min=1e-12)[..., None], real, k, self.iterations, weight)


def spectral_rows(x: Tensor, real: Tensor, k: Tensor, neighbors: int, sigma: float | None) -> Tensor:
    """Each token's entries in the k eigenvectors with the lowest eigenvalues, [R,m,max(k)]; zero beyond a row's own k.

    The eigenvectors are those of the normalized Laplacian of W = exp(-d^2 / 2 sigma^2) over pairs of tokens one of
    which is among the `neighbors` nearest of the other; a token is its own first neighbor. Arguments as in `k_medoids`
    and `CenterClip`.
    """
    m = x.shape[1]
    distance = torch.cdist(x, x)
    distance.diagonal(dim1=1, dim2=2).zero_()  # a token is its own nearest neighbor, even with rounding errors
    distance = distance.masked_fill(~(real[:, :, None] & real[:, None]), torch.inf)
    near, index = distance.topk(min(neighbors, m), dim=2, largest=False)
    linked = torch.zeros_like(distance, dtype=torch.bool).scatter_(2, index, near.isfinite())
    linked = linked | linked.transpose(1, 2)
    near = near[..., 1:]
    if sigma is None and not near.shape[2]:  # one token
        scale = torch.ones(len(x), 1, 1, device=x.device)
    elif sigma is None:
        # The median of the finite distances: the lower one of an even number, 1 if there are none.
        finite = near.isfinite().flatten(1).sum(1)
        middle = near.flatten(1).sort(dim=1).values.gather(1, ((finite - 1) // 2).clamp(min=0)[:, None])
        scale = torch.where(middle.isfinite() & (middle > 0), middle, 1.0)[..., None]
    else:
        scale = torch.full((len(x), 1, 1), sigma, device=x.device)
    weight = torch.where(linked, (-0.5 * (distance.masked_fill(~linked, 0) / scale).square()).exp(), 0.0)
    root = weight.sum(2).clamp(min=1e-12).rsqrt()
    laplacian = torch.diag_embed(torch.where(real, 1.0, 3.0)) - root[:, :, None] * weight * root[:, None]
    # Eigenvalues of real tokens are at most 2, so those of padded slots (3) sort last.
    vectors = torch.linalg.eigh(laplacian).eigenvectors[..., : max(1, int(k.max()))]
    return vectors * (torch.arange(vectors.shape[2], device=x.device) < k[:, None])[:, None]


def k_medoids(x: Tensor, real: Tensor, k: Tensor, iterations: int, weight: Tensor | None = None) -> Tensor:
    """The index of each token's medoid, int64 [R,m]: clusters by Euclidean distance, initialized by KKZ.

    Args:
        x: float32 [R,m,C].
        real: bool [R,m], False for padded slots.
        k: [R], clusters per row, at most its number of real tokens.
        iterations: maximum number of iterations.
        weight: [R,m], the largest of which selects the first medoid. Default: the norms.
    """
    R, m, _ = x.shape
    distance = torch.cdist(x, x, compute_mode="donot_use_mm_for_euclid_dist" if m <= 64 else "use_mm_for_euclid_dist")
    distance.diagonal(dim1=1, dim2=2).zero_()
    most = max(1, int(k.max()))
    slot = torch.arange(most, device=x.device)
    valid = slot < k[:, None]
    # KKZ: the largest norm first, then the farthest token each time.
    medoids = torch.zeros(R, most, dtype=torch.int64, device=x.device)
    medoids[:, 0] = (x.norm(dim=2) if weight is None else weight).masked_fill(~real, -1).argmax(1)
    selected = torch.zeros_like(real).scatter_(1, medoids[:, :1], True)
    near = take_rows(distance, medoids[:, :1])[:, 0]
    for index in range(1, most):
        medoids[:, index] = near.masked_fill(~real | selected, -1).argmax(1)
        newest = medoids[:, index : index + 1]
        selected = selected.scatter(1, newest, True)
        near = torch.minimum(near, take_rows(distance, newest)[:, 0])

    def assign(medoids: Tensor) -> Tensor:
        to = take_rows(distance, medoids).masked_fill(~valid[..., None], torch.inf)
        label = to.argmin(1)
        # A medoid stays in its own cluster even if another medoid is identical.
        own_label = torch.full((R, m + 1), -1, dtype=torch.int64, device=x.device)
        own_label.scatter_(1, medoids.masked_fill(~valid, m), slot.expand(R, -1))
        return torch.where(own_label[:, :m] >= 0, own_label[:, :m], label)

    label = assign(medoids)
    for _ in range(iterations):
        same_cluster = (label[:, :, None] == label[:, None]) & real[:, :, None]
        cost = (distance * same_cluster).sum(1).masked_fill(~real, torch.inf)
        least = torch.full((R, most), torch.inf, device=x.device).scatter_reduce(1, label, cost, "amin")
        position = torch.arange(m, device=x.device).expand(R, -1)
        best = torch.where(cost <= least.gather(1, label), position, m)
        moved = torch.full((R, most), m, device=x.device).scatter_reduce(1, label, best, "amin")
        moved = torch.where(valid, moved, medoids).clamp(max=m - 1)
        if bool((moved == medoids).all()):
            break
        medoids = moved
        label = assign(medoids)
    return medoids.gather(1, label)
