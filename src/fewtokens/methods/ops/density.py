"""Density peaks: which tokens are cluster centers, computed in blocks of bounded memory.

DPC-kNN (Du et al., Knowledge-Based Systems 2016), as used by several token methods: a center is dense and far from
anything denser.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fewtokens.core.plan import Plan

# Distances are computed in blocks of at most this many entries (16 MiB in float32).
_MAX_BLOCK_ENTRIES = 1 << 22


def density_peaks(features: Tensor, mask: Tensor, neighbors: int) -> Tensor:
    """The score of every token, log(rho * delta), float32 [B,N]; -inf in padded slots.

    rho = exp(-mean of the squared distances to the `neighbors` nearest tokens, the token itself included); delta =
    distance to the nearest denser token, or the largest of all distances if there is none. Distances are Euclidean over
    sqrt(C), in float32. Equal densities are ordered by position (the reference codes add noise instead, so their result
    differs each time).

    The logarithm keeps the order of rho*delta even if rho itself underflows.

    Args:
        features: [B,N,C].
        mask: bool [B,N], True for real tokens, which come first.
        neighbors: fewer are used if a video has fewer tokens.
    """
    count = mask.sum(1)
    # Centering leaves distances unchanged and loses fewer digits in the matrix product.
    x = features.float() * mask[..., None]
    x = (x - x.sum(1, keepdim=True) / count.clamp(min=1)[:, None, None]) / features.shape[2] ** 0.5
    B, N, _ = x.shape
    block = max(1, _MAX_BLOCK_ENTRIES // (B * N))
    k = min(neighbors, N)
    # With fewer than k real tokens the mean is over the existing ones.
    within = torch.arange(k, device=x.device) < count[:, None]  # [B,k]
    log_density = []
    farthest = x.new_zeros(B)
    for start, rows, real in zip(range(0, N, block), x.split(block, 1), mask.split(block, 1), strict=True):
        distance = _distance(rows, x)
        distance.diagonal(start, 1, 2).zero_()  # a token is at distance 0 from itself, even with rounding errors
        reachable = mask[:, None] & real[..., None]
        farthest = torch.maximum(farthest, distance.masked_fill(~reachable, 0).amax((1, 2)))
        near = distance.masked_fill(~mask[:, None], torch.inf).topk(k, dim=2, largest=False).values
        near = near.masked_fill(~within[:, None], 0).square().sum(2)
        log_density.append(-near / count.clamp(max=k)[:, None])
    density = torch.cat(log_density, 1).masked_fill(~mask, -torch.inf)  # log rho
    # Rank 0 is the densest; ties by position. "Denser" is then a comparison of ranks.
    rank = density.argsort(dim=1, descending=True, stable=True).argsort(dim=1)
    delta = []
    for rows, row_rank in zip(x.split(block, 1), rank.split(block, 1), strict=True):
        denser = rank[:, None] < row_rank[..., None]
        delta.append(_distance(rows, x).masked_fill(~denser, torch.inf).amin(2))
    separation = torch.cat(delta, 1)
    separation = torch.where(rank == 0, farthest[:, None], separation)
    return (density + separation.clamp(min=1e-30).log()).masked_fill(~mask, -torch.inf)


def nearest_center(features: Tensor, centers: Tensor, real: Tensor) -> Tensor:
    """The index of the nearest of `centers` [B,K,C] (Euclidean) for each of `features` [B,N,C], int64 [B,N].

    `real` bool [B,K] marks the centers that may be chosen; ties go to the first.
    """
    out = []
    block = max(1, _MAX_BLOCK_ENTRIES // (centers.shape[0] * centers.shape[1]))
    for rows in features.float().split(block, 1):
        out.append(_distance(rows, centers.float()).masked_fill(~real[:, None], torch.inf).argmin(2))
    return torch.cat(out, 1)


def cluster_around_peaks(features: Tensor, mask: Tensor, num_clusters: Tensor, neighbors: int) -> tuple[Tensor, Tensor]:
    """Clusters tokens around the density peaks: each token joins its nearest peak, and a peak joins itself.

    Args:
        features: [B,N,C].
        mask: bool [B,N].
        num_clusters: [B], 0 for none.
        neighbors: number of nearest tokens that define the density.

    Returns:
        The cluster of each token, int64 [B,N], numbered in the order of the peaks (undefined in padded slots), and the
        number of clusters, [B].
    """
    rank = density_peaks(features, mask, neighbors).argsort(dim=1, descending=True, stable=True).argsort(dim=1)
    peaks = Plan.keep((rank < num_clusters[:, None]) & mask)
    assert peaks.dest is not None
    real = torch.arange(peaks.num_slots, device=features.device) < peaks.count[:, None]
    label = nearest_center(features, peaks.move(features), real)
    # A peak stays in its own cluster even if another peak is identical.
    return torch.where(peaks.dest >= 0, peaks.dest, label), peaks.count


def _distance(a: Tensor, b: Tensor) -> Tensor:
    """Euclidean distances [B,Na,Nb], computed by a matrix product."""
    squared = a.square().sum(2)[..., None] + b.square().sum(2)[:, None] - 2 * a @ b.transpose(1, 2)
    return squared.clamp_(min=0).sqrt_()
