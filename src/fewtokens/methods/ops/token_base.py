"""The token base of Token Dynamics (arXiv 2503.16980, section 3): clusters of a video's tokens by direction.

Shared by `kmeans`, which returns it, and `token_dynamics`, which updates it by attention to the map of the clusters.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from fewtokens.core.plan import Plan, take_rows
from fewtokens.core.tokens import Tokens
from fewtokens.methods.ops import spherical
from fewtokens.methods.ops.seeded import uniform_hash

# Criteria that select the number of clusters if it is not given.
CRITERIA = ("silhouette", "elbow")
# The number is selected on at most this many evenly spaced tokens.
_MAX_SAMPLE = 4096
# Candidates per centroid of greedy k-means++; about 2 + log K, as in scikit-learn.
_NUM_CANDIDATES = 5


def check_bounds(k_min: int, k_max: int) -> None:
    """Raises a ValueError if the bounds of an adaptive length are invalid."""
    if not 1 <= k_min <= k_max:
        raise ValueError(f"k_min and k_max must satisfy 1 <= k_min <= k_max, got {k_min} and {k_max}")


def cluster_fixed(
    tokens: Tokens,
    k: Tensor,
    seed: int = 0,
    iterations: int = 50,
    tol: float = 1e-4,
    *,
    max_clusters: int | None = None,
) -> Plan:
    """Merges the tokens of each video into exactly k [B] clusters, if there are enough tokens.

    `max_clusters` is an upper bound of k, if known without reading the data.
    """
    x, real = F.normalize(tokens.features.float(), dim=2), tokens.mask
    centroids = spherical.lloyd(x, real, _seed(x, real, max_clusters or int(k.max()), seed), k, iterations, tol)
    return _merge(tokens, x, centroids, k, exact=max_clusters is not None)


def cluster_adaptive(
    tokens: Tokens, criterion: str, k_min: int, k_max: int, seed: int = 0, iterations: int = 50, tol: float = 1e-4
) -> Plan:
    """Merges the tokens of each video into k_min..k_max clusters, as many as the criterion selects.

    Every K is fitted on up to 4096 evenly spaced tokens, initialized from the previous K; then all tokens are assigned.

    Args:
        tokens: the tokens to merge.
        criterion: "silhouette" (the K with the best silhouette by cosine, exact) or "elbow" (the K farthest below the
            chord of the distortion curve).
        k_min, k_max: bounds of the number of clusters.
        seed: random seed of k-means++.
        iterations: maximum number of Lloyd iterations.
        tol: stop if the centroids move by less than this Frobenius norm.
    """
    x = F.normalize(tokens.features.float(), dim=2)
    sample, real = _sample(x, tokens.count)
    count = real.sum(1)
    centroids = _seed(sample, real, k_min, seed)
    fits, scores = [], []
    for k in range(k_min, k_max + 1):
        limit = count.clamp(max=k)
        if k > k_min:
            centroids = torch.cat([centroids, spherical.farthest_row(sample, real, centroids, limit)], dim=1)
        centroids = spherical.lloyd(sample, real, centroids, limit, iterations, tol)
        fit = spherical.assign(sample, real, centroids, limit)
        fits.append(F.pad(centroids, (0, 0, 0, k_max - k)))
        scores.append(spherical.silhouette(sample, real, fit) if criterion == "silhouette" else fit.distortion)
    curve = torch.stack(scores, 1)  # [B, number of ks]
    # A K above the number of tokens repeats the result of the K below it, so it never wins alone.
    best = (curve if criterion == "silhouette" else spherical.below_chord(curve)).argmax(1)
    selected = torch.stack(fits, 1)[torch.arange(len(best), device=x.device), best]
    return _merge(tokens, x, selected, (best + k_min).minimum(count))


def _merge(tokens: Tokens, x: Tensor, centroids: Tensor, k: Tensor, *, exact: bool = False) -> Plan:
    labels = spherical.assign(x, tokens.mask, centroids, k).labels
    return Plan.group(labels, tokens, centroids.shape[1], num_slots=centroids.shape[1] if exact else None)


def _seed(x: Tensor, real: Tensor, centroids: int, seed: int) -> Tensor:
    uniforms = uniform_hash(seed, centroids * _NUM_CANDIDATES, x.device).reshape(centroids, _NUM_CANDIDATES)
    return spherical.kmeans_plus_plus(x, real, uniforms)


def _sample(x: Tensor, count: Tensor) -> tuple[Tensor, Tensor]:
    """Evenly spaced rows of each video, [B,n,C], and which are real, bool [B,n]."""
    n = min(x.shape[1], _MAX_SAMPLE)
    position = torch.arange(n, device=x.device).expand(len(count), -1)
    size = count.clamp(max=n)[:, None]
    index = (position * count[:, None] // size).clamp(max=x.shape[1] - 1)
    return take_rows(x, index), position < size
