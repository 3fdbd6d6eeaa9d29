"""Density peaks: which tokens are cluster centers, computed in blocks of bounded memory.

DPC-kNN (Du et al., Knowledge-Based Systems 2016), as used by several token methods: a center is dense and far from
anything denser.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from fewtokens.core.plan import Plan, mask_indices, take_rows

# Distances are computed in blocks of at most this many entries (16 MiB in float32).
_MAX_BLOCK_ENTRIES = 1 << 22


def density_peaks(features: Tensor, mask: Tensor, neighbors: int) -> Tensor:
    """The score of every token, log(rho * delta), float32 [B,N]; -inf in padded slots.

    rho = exp(-mean of the squared distances to the `neighbors` nearest tokens, the token itself included); delta =
    distance to the nearest denser token, or the largest of all distances if there is none. Distances are Euclidean over
    sqrt(C), in float32. Equal densities are ordered by position (the reference codes add noise instead, so their result
    differs each time).

    The logarithm keeps the order of rho*delta even if rho itself underflows.

    Each pair of tokens is compared once. The nearest denser token is usually among the nearest tokens; only the others,
    which are the densest of their neighborhood, are compared with all tokens again.

    Args:
        features: [B,N,C].
        mask: bool [B,N], True for real tokens, which come first.
        neighbors: fewer are used if a video has fewer tokens.
    """
    return _peaks(features, mask, neighbors)[0]


def _peaks(features: Tensor, mask: Tensor, neighbors: int) -> tuple[Tensor, Tensor]:
    """The scores of `density_peaks` and each token's nearest tokens, itself first, int64 [B,N,k]; -1 for none."""
    # Under autocast, products in half precision would not tell near tokens apart.
    with torch.autocast(features.device.type, enabled=False):
        count = mask.sum(1)
        # Centering leaves distances unchanged and loses fewer digits in the matrix product.
        x = features.detach().float() * mask[..., None]
        x = (x - x.sum(1, keepdim=True) / count.clamp(min=1)[:, None, None]) / features.shape[2] ** 0.5
        left, right = _factors(x, mask)
        near, index, farthest = _nearest(left, right, mask, min(neighbors, x.shape[1]))
        # With fewer than k real tokens the mean is over the existing ones.
        exists = near.isfinite()
        density = -near.masked_fill(~exists, 0).sum(2) / exists.sum(2).clamp(min=1)  # log rho
        density = density.masked_fill(~mask, -torch.inf)
        # Rank 0 is the densest; ties by position. "Denser" is then a comparison of ranks.
        rank = density.argsort(dim=1, descending=True, stable=True).argsort(dim=1)
        denser = (rank.gather(1, index.flatten(1)).reshape(index.shape) < rank[..., None]) & exists
        separation = near.masked_fill(~denser, torch.inf).amin(2)
        separation = _separate_rest(left, right, rank, separation, separation.isinf() & mask & (rank > 0))
        separation = torch.where(rank == 0, farthest[:, None], separation).sqrt()
        score = (density + separation.clamp(min=1e-30).log()).masked_fill(~mask, -torch.inf)
        return score, index.masked_fill(~exists, -1)


def _factors(x: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Two matrices [B,N,C+2] whose product is the table of squared distances, inf where a token is padding."""
    norm = x.square().sum(2, keepdim=True).masked_fill(~mask[..., None], torch.inf)
    one = torch.ones_like(norm)
    return torch.cat([x, norm, one], 2), torch.cat([-2 * x, one, norm], 2)


def _nearest(left: Tensor, right: Tensor, mask: Tensor, k: int) -> tuple[Tensor, Tensor, Tensor]:
    """The k nearest tokens of each token, itself included, and the largest of all distances, squared.

    Only the upper half of the table is computed: a block of rows with all later columns, read in both directions.

    Returns:
        Squared distances [B,N,k], inf without a token, their indices, int64 [B,N,k], and the largest [B].
    """
    B, N, _ = left.shape
    near = left.new_full((B, N, k), torch.inf)
    index = torch.zeros(B, N, k, dtype=torch.int64, device=left.device)
    farthest = left.new_zeros(B)
    masked = mask.is_cuda or torch.compiler.is_compiling() or not bool(mask.all())
    block = max(1, _MAX_BLOCK_ENTRIES // (B * N))
    for start in range(0, N, block):
        stop = min(N, start + block)
        table = left[:, start:stop] @ right[:, start:].transpose(1, 2)
        # Distances among these rows are equal in both directions, and a token is its own nearest neighbor, even with
        # rounding errors.
        square = table[..., : stop - start].triu(1)
        table[..., : stop - start] = square + square.transpose(1, 2)
        farthest = torch.maximum(farthest, (table.masked_fill(table.isinf(), 0) if masked else table).amax((1, 2)))
        _update(near[:, start:stop], index[:, start:stop], table, 2, start)
        if stop < N:
            _update(near[:, stop:], index[:, stop:], table[..., stop - start :], 1, start)
    return near, index, farthest


def _update(near: Tensor, index: Tensor, table: Tensor, dim: int, start: int) -> None:
    """Merges a table [B,n,m] of distances, reduced over `dim`, into the nearest tokens, in place.

    Args:
        near: the smallest distances so far, [B,n,k] or [B,m,k].
        index: the tokens at these distances.
        table: further distances, to the tokens from `start` on.
        dim: the axis of these tokens.
        start: the first of them.
    """
    k, size = near.shape[2], table.shape[dim]
    rows = table if dim == 2 else table.transpose(1, 2)
    groups = max(k, math.isqrt(size * k))
    members = size // groups
    if members > 1:
        # The k smallest are in the k groups with the smallest minima, or in the rest that does not fill a group.
        low = table.narrow(dim, 0, groups * members).unflatten(dim, (members, groups)).amin(dim)
        group = (low if dim == 2 else low.transpose(1, 2)).topk(k, dim=2, largest=False, sorted=False).indices
        column = (group[..., None] + groups * torch.arange(members, device=table.device)).flatten(2)
        rest = torch.arange(groups * members, size, device=table.device)
        column = torch.cat([column, rest.expand(*column.shape[:2], -1)], 2)
        rows = rows.gather(2, column)
    else:
        column = torch.arange(size, device=table.device).expand(rows.shape)
    value, order = torch.cat([near, rows.clamp(min=0)], 2).topk(k, dim=2, largest=False)
    near.copy_(value)
    index.copy_(torch.cat([index, column + start], 2).gather(2, order))


def _separate_rest(left: Tensor, right: Tensor, rank: Tensor, separation: Tensor, rest: Tensor) -> Tensor:
    """Replaces the squared distance to the nearest denser token [B,N] where `rest` [B,N] is True."""
    block = max(1, _MAX_BLOCK_ENTRIES // (rest.shape[0] * rest.shape[1]))
    for token in mask_indices(rest).split(block, 1):
        table = take_rows(left, token) @ right.transpose(1, 2)
        denser = rank[:, None] < rank.gather(1, token)[..., None]
        separation = separation.scatter(1, token, table.masked_fill_(~denser, torch.inf).amin(2).clamp(min=0))
    return separation


def nearest_center(features: Tensor, centers: Tensor, real: Tensor) -> Tensor:
    """The index of the nearest of `centers` [B,K,C] (Euclidean) for each of `features` [B,N,C], int64 [B,N].

    `real` bool [B,K] marks the centers that may be chosen; ties go to the first.
    """
    # The distance without the square of the token itself, which is the same for all centers.
    centers = centers.float()
    bias = (centers.square().sum(2) / 2).masked_fill(~real, torch.inf)[:, None]
    block = max(1, _MAX_BLOCK_ENTRIES // (centers.shape[0] * centers.shape[1]))
    parts = [
        torch.baddbmm(bias, rows, centers.transpose(1, 2), alpha=-1).argmin(2)
        for rows in features.float().split(block, 1)
    ]
    return torch.cat(parts, 1)


def cluster_around_peaks(features: Tensor, mask: Tensor, num_clusters: Tensor, neighbors: int) -> tuple[Tensor, Plan]:
    """Clusters tokens around the density peaks: each token joins its nearest peak, and a peak joins itself.

    Args:
        features: [B,N,C].
        mask: bool [B,N].
        num_clusters: [B], 0 for none.
        neighbors: number of nearest tokens that define the density.

    Returns:
        The cluster of each token, int64 [B,N], numbered in the order of the peaks (undefined in padded slots), and the
        plan that keeps the peaks.
    """
    score, nearest = _peaks(features, mask, neighbors)
    rank = score.argsort(dim=1, descending=True, stable=True).argsort(dim=1)
    peaks = Plan.keep((rank < num_clusters[:, None]) & mask)
    assert peaks.dest is not None
    # The first peak in the list of a token's nearest tokens is its nearest peak; the others are compared with all.
    joined = (
        F.pad(peaks.dest, (0, 1), value=-1).gather(1, nearest.flatten(1) % (mask.shape[1] + 1)).reshape(nearest.shape)
    )
    first = (joined >= 0).to(torch.uint8).argmax(2, keepdim=True)
    label = joined.gather(2, first).squeeze(2)
    rest = mask_indices((label < 0) & mask)
    label = label.scatter(1, rest, nearest_center(take_rows(features, rest), peaks.move(features), peaks.mask))
    # A peak stays in its own cluster even if another peak is identical.
    return torch.where(peaks.dest >= 0, peaks.dest, label), peaks
