"""Spherical k-means on batches of videos of unequal length, in blocks of bounded memory.

Throughout, x is float32 [B,N,C] of unit (or zero) vectors, `real` bool [B,N] marks the real rows (which come first),
and k int64 [B] is the number of the K centroids [B,K,C] that a video uses.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from fewtokens.core.plan import flat_rows, group_sum, mask_indices, readable, take_rows

# Similarities are computed in blocks of at most this many entries (4 MiB in float32), which are still in the cache when
# their maximum is taken.
_MAX_BLOCK_ENTRIES = 1 << 20
# Cosines and angles that differ by less may be equal.
_ROUNDING = 1e-6
# Centroids whose candidates are sampled together by k-means++, at most.
MAX_TOGETHER = 32
# Candidates of each of them.
_NUM_TOGETHER = 3


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


class _Bounds(NamedTuple):
    """What is known about the angles between rows and centroids.

    Attributes:
        labels: int64 [B,N], the most similar centroid of each row.
        own: [B,N], an upper bound of the angle to it.
        others: [B,N,G], a lower bound of the angle to any other centroid of a group of consecutive ones.
    """

    labels: Tensor
    own: Tensor
    others: Tensor


def assign(
    x: Tensor, real: Tensor, centroids: Tensor, k: Tensor, nearest: tuple[Tensor, Tensor] | None = None
) -> Assignment:
    """Assigns every row to its most similar centroid; no used cluster stays empty if there are enough rows.

    `nearest` is the result of the comparison, if known; see `lloyd`.
    """
    value, label = nearest or _best(x, centroids, _unused(centroids, k))
    sums = _add_by_label(torch.zeros_like(centroids), _masked(x, real), label)
    return _without_empty(x, real, centroids, label, sums, k, value)


def _reassign(x: Tensor, real: Tensor, centroids: Tensor, k: Tensor, fit: Assignment, labels: Tensor) -> Assignment:
    """The same as `assign` with the most similar centroids `labels`; the sums change by the rows that change clusters.

    Memberships are read, so this is for tensors on a CPU.
    """
    own = fit.labels.clamp(min=0)
    rows = mask_indices((labels != own) & real)
    if rows.shape[1] * 4 > real.shape[1]:
        sums = _add_by_label(torch.zeros_like(centroids), _masked(x, real), labels)
    else:
        changed = take_rows(x, rows) * ((labels != own) & real).gather(1, rows)[..., None]
        sums = _add_by_label(fit.sums.clone(), changed, labels.gather(1, rows))
        sums = _add_by_label(sums, changed.neg_(), own.gather(1, rows))
    return _without_empty(x, real, centroids, labels, sums, k)


def _unused(centroids: Tensor, k: Tensor) -> Tensor:
    return torch.arange(centroids.shape[1], device=k.device) >= k[:, None]


def _masked(x: Tensor, real: Tensor) -> Tensor:
    """The rows, zero in padded slots."""
    return x if readable(real) and bool(real.all()) else x * real[..., None]


def _best(x: Tensor, centroids: Tensor, unused: Tensor, others: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """The similarity of each row to its most similar centroid that is not unused, and the index of that, both [B,N].

    Angles to all others are written to `others`, as in `_Bounds`.
    """
    masked = not readable(unused) or bool(unused.any())
    block = max(1, _MAX_BLOCK_ENTRIES // max(1, centroids.shape[0] * centroids.shape[1]))
    values, labels = [], []
    for start in range(0, max(1, x.shape[1]), block):
        # In this order the product of many centroids takes two thirds of the time.
        similarity = (centroids @ x[:, start : start + block].transpose(1, 2)).transpose(1, 2)
        if masked:
            similarity.masked_fill_(unused[:, None], -torch.inf)
        value, label = similarity.max(2)
        values.append(value)
        labels.append(label)
        if others is not None:
            angle = similarity.add_(_ROUNDING).clamp_(-1, 1).acos_().scatter_(2, label[..., None], torch.inf)
            others[:, start : start + block] = -_grouped(-angle, others.shape[2])
    return torch.cat(values, 1), torch.cat(labels, 1)


def _grouped(values: Tensor, groups: int) -> Tensor:
    """The largest value of each group of consecutive centroids: [...,K] -> [...,G]."""
    K = values.shape[-1]
    if groups == K:
        return values
    size = -(-K // groups)
    return F.pad(values, (0, size * groups - K), value=-torch.inf).unflatten(-1, (groups, size)).amax(-1)


def _compare(x: Tensor, centroids: Tensor, unused: Tensor, groups: int) -> _Bounds:
    """Compares all rows with all centroids."""
    others = x.new_empty(*x.shape[:2], groups)
    value, labels = _best(x, centroids, unused, others)
    return _Bounds(labels, (value - _ROUNDING).clamp_(-1, 1).acos_(), others)


def _compare_near(
    x: Tensor, real: Tensor, centroids: Tensor, unused: Tensor, bounds: _Bounds, turned: Tensor
) -> _Bounds:
    """The same from bounds for centroids that have turned by up to `turned` [B,K] since; `bounds` are overwritten.

    Angles obey the triangle inequality (Elkan, ICML 2003). Only the rows to which another centroid could now be nearer
    are compared. Bounds are read, so this is for tensors on a CPU.
    """
    labels, own, others = bounds
    groups = others.shape[2]
    own += turned.gather(1, labels)
    others -= _grouped(turned, groups)[:, None]
    rows = mask_indices((own >= others.amin(2)) & real)
    if rows.shape[1] * 4 > real.shape[1] * 3:
        return _compare(x, centroids, unused, groups)
    new = _compare(take_rows(x, rows), centroids, unused, groups)
    flat = flat_rows(rows, real.shape[1])
    others.flatten(0, 1).index_copy_(0, flat, new.others.flatten(0, 1))
    return _Bounds(labels.scatter(1, rows, new.labels), own.scatter_(1, rows, new.own), others)


def _without_empty(
    x: Tensor, real: Tensor, centroids: Tensor, label: Tensor, sums: Tensor, k: Tensor, value: Tensor | None = None
) -> Assignment:
    """The assignment of rows to their most similar centroids, after each empty cluster has received a row.

    `value` [B,N] is the similarity to them, if known.
    """
    unused = _unused(sums, k)
    counts = group_sum(real[..., None].to(x.dtype), label, sums.shape[1]).squeeze(2)
    # The sum of the similarities of a cluster is the product of its centroid and its sum.
    distortion = 1 - (centroids * sums).sum((1, 2)) / counts.sum(1).clamp(min=1)
    empty = (counts == 0) & ~unused
    if not readable(empty) or bool(empty.any()):
        value = _best(x, centroids, unused)[0] if value is None else value
        filled = _fill_empty(label, value, real, empty)
        new_sums = _add_by_label(torch.zeros_like(sums), x * real[..., None], filled)
        any_empty = empty.any()
        label, sums = torch.where(any_empty, filled, label), torch.where(any_empty, new_sums, sums)
        counts = torch.zeros_like(counts).scatter_add_(1, label, real.to(x.dtype))
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


def lloyd(
    x: Tensor,
    real: Tensor,
    centroids: Tensor,
    k: Tensor,
    iterations: int,
    tol: float,
    nearest: tuple[Tensor, Tensor] | None = None,
) -> tuple[Tensor, Assignment]:
    """Lloyd's algorithm from `centroids`; a video that has converged is not changed.

    Args:
        x: unit rows [B,N,C].
        real: bool [B,N].
        centroids: unit vectors [B,K,C].
        k: [B].
        iterations: maximum number of iterations.
        tol: a video has converged if its centroids move by less than this Frobenius norm.
        nearest: the similarity of each row to its most similar centroid and the index of that, both [B,N], if known.

    Returns:
        Unit centroids [B,K,C], and the assignment to them.
    """
    active = torch.ones(x.shape[0], dtype=torch.bool, device=x.device)
    unused = _unused(centroids, k)
    # The bounds take no more memory than the rows.
    size = -(-centroids.shape[1] // max(1, x.shape[2]))
    groups = -(-centroids.shape[1] // size)
    bounds = None
    fit = assign(x, real, centroids, k, nearest)
    for _ in range(iterations):
        has_mean = (fit.counts > 0)[..., None] & (fit.sums.norm(dim=2, keepdim=True) > 0)
        means = torch.where(has_mean & active[:, None, None], F.normalize(fit.sums, dim=2), centroids)
        shift = (means - centroids).square().sum(2)
        active = active & (shift.sum(1).sqrt() > tol)
        if not readable(x):
            fit = assign(x, real, means, k)
        elif bool((shift > 0).any()):
            if bounds is None:
                bounds = _compare(x, means, unused, groups)
            else:
                turned = 2 * (shift.sqrt() / 2).clamp_(max=1).asin_() + _ROUNDING * (shift > 0)
                # A centroid of length 0 had no direction.
                turned.masked_fill_(~centroids.any(2), torch.pi)
                bounds = _compare_near(x, real, means, unused, bounds, turned)
            fit = _reassign(x, real, means, k, fit, bounds.labels)
        centroids = means
        # A traced graph cannot branch on data; converged videos do not change anyway.
        if not torch.compiler.is_compiling() and not bool(active.any()):
            break
    return centroids, fit


class Seeds(NamedTuple):
    """The result of `kmeans_plus_plus`.

    Attributes:
        centroids: [B,K,C].
        similarity: [B,N], cosine of each row to its most similar used centroid, undefined in padded slots.
        labels: int64 [B,N], the index of that centroid.
    """

    centroids: Tensor
    similarity: Tensor
    labels: Tensor


def kmeans_plus_plus(x: Tensor, real: Tensor, k: Tensor, clusters: int, uniforms: Tensor) -> Seeds:
    """Greedy k-means++.

    For each next centroid a few candidates are sampled with probability proportional to their distance to the existing
    centroids, and the one that leaves the smallest total distance is selected. From the eighth centroid on, those of
    several centroids are sampled together and compared with the rows by one product: for half the number of existing
    centroids, at most 32, three candidates each. A centroid is then selected among the L most promising of all
    of these. The inertia of k-means differs less than between two seeds.

    Args:
        x: unit rows [B,N,C].
        real: bool [B,N].
        k: [B], number of centroids that a video uses.
        clusters: K, at least every k.
        uniforms: random numbers in [0,1), [K+32,L]: L candidates per centroid. The last 32 complete the candidates that
            are sampled together, so that the centroids of a video do not depend on the K of its batch.
    """
    N, L = x.shape[1], uniforms.shape[1]
    far = real.to(x.dtype)
    labels = torch.zeros(x.shape[:2], dtype=torch.int64, device=x.device)
    selected: list[Tensor] = []
    while len(selected) < clusters:
        together = 1 if len(selected) < 8 else min(len(selected) // 2, MAX_TOGETHER)
        row = uniforms[len(selected) : len(selected) + together, : _NUM_TOGETHER if together > 1 else L].double()
        # If every row already equals some centroid, sample among all rows.
        cumulative = torch.where(far.sum(1, keepdim=True) > 0, far, real.to(x.dtype)).double().cumsum(1)
        index = torch.searchsorted(cumulative, row.flatten() * cumulative[:, -1:], right=True).clamp(max=N - 1)
        distance = (1 - take_rows(x, index) @ x.transpose(1, 2)).mul_(real[:, None])
        # Rows within rounding error of a centroid count as equal to it.
        distance = distance.masked_fill_(distance < 1e-6, 0)
        if not selected:
            far = torch.full_like(far, 2) * real
        # What a candidate removes from the total distance: once known, it can only become less.
        gain = (far[:, None] - distance).clamp_(min=0).sum(2)
        for _ in range(min(together, clusters - len(selected))):
            promising = gain.topk(min(L, gain.shape[1]), dim=1).indices
            to = take_rows(distance, promising)
            removed = (far[:, None] - to).clamp_(min=0).sum(2, dtype=torch.float64)
            best = removed.argmax(1, keepdim=True)
            gain = gain.scatter(1, promising, removed.to(gain.dtype).scatter(1, best, -1))
            to = take_rows(to, best).squeeze(1)
            closer = (to < far) & (len(selected) < k)[:, None]
            far, labels = torch.where(closer, to, far), labels.masked_fill(closer, len(selected))
            selected.append(index.gather(1, promising.gather(1, best)))
    return Seeds(take_rows(x, torch.cat(selected, 1)), 1 - far, labels)


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
