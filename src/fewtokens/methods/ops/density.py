"""Density peaks: which tokens are centres, found in blocks of bounded memory.

DPC-kNN (Du et al., Knowledge-Based Systems 2016) as used by several token methods: a centre is dense and
far from anything denser.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fewtokens.core.plan import Plan

# Distances are taken in blocks of at most this many entries (16 MiB in float32).
_ENTRIES_AT_ONCE = 1 << 22


def density_peaks(features: Tensor, mask: Tensor, neighbors: int) -> Tensor:
    """The score of every token, log(rho * delta), float32 [B,N]; -inf in padded slots.

    rho = exp(-mean of the squared distances to the `neighbors` nearest, the token itself among them);
    delta = distance to the nearest denser token, or the largest distance of all if there is none. Distances
    are Euclidean over sqrt(C), in float32. Equal densities are ordered by place (the reference codes add
    noise instead, and so give another result each time).

    The logarithm keeps the order of rho*delta where rho itself would underflow.

    Args:
        features: [B,N,C]; mask: bool [B,N], True = real, real ones first.
        neighbors: fewer are used where a video has fewer tokens.
    """
    count = mask.sum(1)
    # Distances from the mean are the same and lose fewer digits in the matrix product.
    x = features.float() * mask[..., None]
    x = (x - x.sum(1, keepdim=True) / count.clamp(min=1)[:, None, None]) / features.shape[2] ** 0.5
    B, N, _ = x.shape
    block = max(1, _ENTRIES_AT_ONCE // (B * N))
    k = min(neighbors, N)
    # Among fewer than k real tokens the mean is over those there are.
    within = torch.arange(k, device=x.device) < count[:, None]  # [B,k]
    log_density = []
    farthest = x.new_zeros(B)
    for start, rows, real in zip(range(0, N, block), x.split(block, 1), mask.split(block, 1), strict=True):
        distance = _distance(rows, x)
        distance.diagonal(start, 1, 2).zero_()  # a token is at distance 0 from itself, rounding or not
        reachable = mask[:, None] & real[..., None]
        farthest = torch.maximum(farthest, distance.masked_fill(~reachable, 0).amax((1, 2)))
        near = distance.masked_fill(~mask[:, None], torch.inf).topk(k, dim=2, largest=False).values
        near = near.masked_fill(~within[:, None], 0).square().sum(2)
        log_density.append(-near / count.clamp(max=k)[:, None])
    density = torch.cat(log_density, 1).masked_fill(~mask, -torch.inf)  # log rho
    # Rank 0 is the densest; ties by place. "Denser" is then a comparison of ranks.
    rank = density.argsort(dim=1, descending=True, stable=True).argsort(dim=1)
    delta = []
    for rows, own in zip(x.split(block, 1), rank.split(block, 1), strict=True):
        denser = rank[:, None] < own[..., None]
        delta.append(_distance(rows, x).masked_fill(~denser, torch.inf).amin(2))
    apart = torch.cat(delta, 1)
    apart = torch.where(rank == 0, farthest[:, None], apart)
    return (density + apart.clamp(min=1e-30).log()).masked_fill(~mask, -torch.inf)


def nearest_centre(features: Tensor, centres: Tensor, real: Tensor) -> Tensor:
    """Number of the Euclidean-nearest of `centres` [B,K,C] for each of `features` [B,N,C], int64 [B,N].

    `real` bool [B,K] says which centres may be chosen; the first of equals.
    """
    out = []
    block = max(1, _ENTRIES_AT_ONCE // (centres.shape[0] * centres.shape[1]))
    for rows in features.float().split(block, 1):
        out.append(_distance(rows, centres.float()).masked_fill(~real[:, None], torch.inf).argmin(2))
    return torch.cat(out, 1)


def around_peaks(features: Tensor, mask: Tensor, number: Tensor, neighbors: int) -> tuple[Tensor, Tensor]:
    """Clusters around the densest peaks: each token joins its nearest one, a peak its own.

    Args:
        features: [B,N,C]; mask: bool [B,N]. number: [B], clusters; none where it is 0. neighbors: of the density.

    Returns:
        The cluster of each token, int64 [B,N], counted in the order of the peaks (padded slots mean nothing), and how
        many clusters there are, [B].
    """
    rank = density_peaks(features, mask, neighbors).argsort(dim=1, descending=True, stable=True).argsort(dim=1)
    peaks = Plan.keep((rank < number[:, None]) & mask)
    assert peaks.dest is not None
    real = torch.arange(peaks.num_slots, device=features.device) < peaks.count[:, None]
    label = nearest_centre(features, peaks.move(features), real)
    # A peak stays in its own cluster even where another one is equal to it.
    return torch.where(peaks.dest >= 0, peaks.dest, label), peaks.count


def _distance(a: Tensor, b: Tensor) -> Tensor:
    """Euclidean distances [B,Na,Nb] by a matrix product."""
    squared = a.square().sum(2)[..., None] + b.square().sum(2)[:, None] - 2 * a @ b.transpose(1, 2)
    return squared.clamp_(min=0).sqrt_()
