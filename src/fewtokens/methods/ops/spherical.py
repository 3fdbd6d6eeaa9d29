"""Spherical k-means on batches of videos of unequal length, in blocks of bounded memory.

Throughout, x is float32 [B,N,C] of unit (or zero) vectors, `real` bool [B,N] marks the real rows (which come first),
and k int64 [B] is the number of the K centroids [B,K,C] that a video uses.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from fewtokens.core.plan import take_rows

# Rows are processed in blocks of at most this many entries (4 MiB in float32), which are still in the cache when they
# are read again for the sums.
_MAX_BLOCK_ENTRIES = 1 << 20


class Assignment(NamedTuple):
    """The result of `assign`.

    Attributes:
        labels: int64 [B,N], -1 in padded slots.
        sums: [B,K,C], sum of each cluster.
        counts: [B,K], number of rows of each cluster.
        distortion: [B], mean of 1 - cosine to the centroid.
    """

    labels: Tensor
    sums: Tensor
    counts: Tensor
    distortion: Tensor


def assign(x: Tensor, real: Tensor, centroids: Tensor, k: Tensor) -> Assignment:
    """Assigns every row to its most similar centroid; no used cluster stays empty if there are enough rows."""
    B, K, C = centroids.shape
    unused = torch.arange(K, device=x.device) >= k[:, None]
    labels, best, sums, counts = [], [], x.new_zeros(B, K, C), x.new_zeros(B, K)
    # A traced graph cannot branch on data, so it computes everything that may be needed.
    traced = torch.compiler.is_compiling()
    masked, some_unused = traced or not bool(real.all()), traced or bool(unused.any())
    block = max(1, _MAX_BLOCK_ENTRIES // (B * max(C, K)))
    for rows, row_mask in zip(x.split(block, 1), real.split(block, 1), strict=True):
        similarity = rows @ centroids.transpose(1, 2)
        if some_unused:
            similarity.masked_fill_(unused[:, None], -torch.inf)
        value, label = similarity.max(2)
        counts.scatter_add_(1, label, row_mask.to(x.dtype))
        _add_by_label(sums, rows * row_mask[..., None] if masked else rows, label)
        labels.append(label)
        best.append(value)
    label, value = torch.cat(labels, 1), torch.cat(best, 1)
    empty = (counts == 0) & ~unused
    if traced or bool(empty.any()):
        filled = _fill_empty(label, value, real, empty)
        new_sums = _add_by_label(torch.zeros_like(sums), x * real[..., None], filled)
        any_empty = empty.any()
        label, sums = torch.where(any_empty, filled, label), torch.where(any_empty, new_sums, sums)
        counts = torch.zeros_like(counts).scatter_add_(1, label, real.to(x.dtype))
    distortion = ((1 - value) * real).sum(1) / real.sum(1).clamp(min=1)
    return Assignment(label.masked_fill(~real, -1), sums, counts, distortion)


def _add_by_label(sums: Tensor, rows: Tensor, labels: Tensor) -> Tensor:
    """Adds the rows [B,n,C] to the sums [B,K,C] of their labels, in place."""
    B, K, C = sums.shape
    if rows.is_cuda:
        # Atomic additions to few rows are slow and unordered; a matrix product is neither.
        return sums.baddbmm_(F.one_hot(labels, K).to(rows.dtype).transpose(1, 2), rows)
    index = torch.arange(B, device=rows.device)[:, None] * K + labels
    sums.view(B * K, C).index_add_(0, index.flatten(), rows.reshape(-1, C))
    return sums


def _fill_empty(labels: Tensor, similarity: Tensor, real: Tensor, empty: Tensor) -> Tensor:
    """Gives each empty cluster the row that fits its own cluster worst; the best row of a cluster never leaves it."""
    B, N = labels.shape
    K = empty.shape[1]
    value = similarity.masked_fill(~real, -torch.inf)
    top = value.new_full((B, K), -torch.inf).scatter_reduce(1, labels, value, "amax")
    index = torch.arange(N, device=labels.device).expand(B, -1)
    is_top = real & (value == top.gather(1, labels))
    best_row = index.new_full((B, K), N).scatter_reduce(1, labels, index.masked_fill(~is_top, N), "amin")
    is_best = best_row.gather(1, labels) == index
    order = similarity.masked_fill(is_best | ~real, torch.inf).argsort(dim=1, stable=True)
    slot = (empty.cumsum(1) - 1).clamp(min=0, max=N - 1)
    moved = order.gather(1, slot)
    free = ~is_best & real
    receives = empty & free.gather(1, moved)
    padded = F.pad(labels, (0, 1))
    cluster = torch.arange(K, device=labels.device).expand(B, -1)
    return padded.scatter(1, moved.masked_fill(~receives, N), cluster)[:, :N]


def lloyd(x: Tensor, real: Tensor, centroids: Tensor, k: Tensor, iterations: int, tol: float) -> Tensor:
    """Lloyd's algorithm from `centroids`; a video that has converged is not changed. Returns unit centroids [B,K,C]."""
    active = torch.ones(x.shape[0], dtype=torch.bool, device=x.device)
    for _ in range(iterations):
        fit = assign(x, real, centroids, k)
        moved = torch.where(fit.sums.norm(dim=2, keepdim=True) > 0, F.normalize(fit.sums, dim=2), centroids)
        moved = torch.where(active[:, None, None], moved, centroids)
        active = active & ((moved - centroids).square().sum((1, 2)).sqrt() > tol)
        centroids = moved
        # A traced graph cannot branch on data; converged videos do not change anyway.
        if not torch.compiler.is_compiling() and not bool(active.any()):
            break
    return centroids


def kmeans_plus_plus(x: Tensor, real: Tensor, uniforms: Tensor) -> Tensor:
    """Greedy k-means++: returns centroids [B,K,C].

    For each next centroid a few candidates are sampled with probability proportional to their distance to the existing
    centroids, and the one that leaves the smallest total distance is selected.

    Args:
        x: unit rows [B,N,C].
        real: bool [B,N].
        uniforms: random numbers in [0,1), [K,L]: L candidates per centroid.
    """
    far = real.double()
    selected: list[Tensor] = []
    for row in uniforms.double().unbind(0):
        # If every row already equals some centroid, sample among all rows.
        cumulative = torch.where(far.sum(1, keepdim=True) > 0, far, real.double()).cumsum(1)
        index = torch.searchsorted(cumulative, row * cumulative[:, -1:], right=True).clamp(max=x.shape[1] - 1)  # [B,L]
        candidates = take_rows(x, index)
        distance = (1 - candidates @ x.transpose(1, 2)).double() * real[:, None]  # [B,L,N]
        # Rows within rounding error of a centroid count as equal to it.
        distance = distance.masked_fill(distance < 1e-6, 0)
        after = torch.minimum(far[:, None], distance) if selected else distance
        best = after.sum(2).argmin(1, keepdim=True)
        far = take_rows(after, best).squeeze(1)
        selected.append(take_rows(candidates, best))
    return torch.cat(selected, 1)


def farthest_row(x: Tensor, real: Tensor, centroids: Tensor, k: Tensor) -> Tensor:
    """The row least similar to its centroid, as one more centroid [B,1,C]."""
    used = torch.arange(centroids.shape[1], device=x.device) < k[:, None]
    similarity = (x @ centroids.transpose(1, 2)).masked_fill(~used[:, None], -torch.inf).amax(2)
    index = similarity.masked_fill(~real, torch.inf).argmin(1)
    return x[torch.arange(x.shape[0], device=x.device), index][:, None]


def silhouette(x: Tensor, real: Tensor, fit: Assignment) -> Tensor:
    """Mean silhouette of each video by cosine distance, [B]; exact, in O(N K C).

    The mean cosine to the members of a cluster is the inner product with their mean, so no pair of rows is compared.
    Rows alone in their cluster score 0. Computed in float64: in float32 the sum of many equal rows is off by more than
    the rounding error of their distances, and a video of one color would appear to have structure.
    """
    labels, x = fit.labels.clamp(min=0), x.double()
    inner = x @ _add_by_label(x.new_zeros(fit.sums.shape), x * real[..., None], labels).transpose(1, 2)  # [B,N,K]
    own_count = fit.counts.gather(1, labels)
    own = inner.gather(2, labels[..., None]).squeeze(2) - x.square().sum(2)
    a = 1 - own / (own_count - 1).clamp(min=1)
    others = (inner / fit.counts.clamp(min=1)[:, None]).masked_fill((fit.counts == 0)[:, None], -torch.inf)
    b = 1 - others.scatter(2, labels[..., None], -torch.inf).amax(2)
    larger = torch.maximum(a, b)
    # Equal rows are at distance 0 up to rounding: no structure, score 0.
    score = torch.where((larger > 1e-6) & (own_count > 1) & b.isfinite(), (b - a) / larger, 0.0)
    return ((score * real).sum(1) / real.sum(1).clamp(min=1)).float()


def below_chord(curve: Tensor) -> Tensor:
    """The depth of each point of the curves [B,n] below the chord from first to last, with axes scaled to 0..1."""
    low, high = curve.amin(1, keepdim=True), curve.amax(1, keepdim=True)
    y = (curve - low) / (high - low).clamp(min=1e-12)
    x_axis = torch.linspace(0, 1, curve.shape[1], device=curve.device)
    below = (1 - x_axis) * y[:, :1] + x_axis * y[:, -1:] - y
    # The elbow of a straight or flat curve (up to rounding) is its start.
    return below.masked_fill((below.abs() < 1e-6) | (high - low < 1e-5), 0)
