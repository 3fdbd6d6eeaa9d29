"""The token base of Token Dynamics (arXiv 2503.16980, section 3): clusters of a video's tokens by direction.

Shared by `kmeans`, which returns it, and `token_dynamics`, which updates it by attention to the map of the clusters.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from fewtokens.core.plan import Plan, readable, take_rows
from fewtokens.core.tokens import Tokens
from fewtokens.methods.ops import spherical
from fewtokens.methods.ops.seeded import uniform_hash

# Criteria that select the number of clusters if it is not given.
CRITERIA = ("silhouette", "elbow")
# How centroids are initialized.
INITS = ("k-means++", "random")
# The number is selected on at most this many tokens.
_MAX_SAMPLE = 4096
# A fixed number of centroids is initialized on at most this many tokens per centroid, and at least this many.
_ROWS_PER_CENTROID = 48
_MIN_SAMPLE = 1024
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
    init: str = "k-means++",
    max_clusters: int | None = None,
) -> Plan:
    """Merges the tokens of each video into exactly k [B] clusters, if there are enough tokens.

    `init` is one of `INITS`; `max_clusters` is an upper bound of k, if known without reading the data.
    """
    x, real = F.normalize(tokens.features.detach().float(), dim=2), tokens.mask
    clusters = max_clusters or int(k.max())
    if init == "random":
        centroids, known = _random_rows(x, real, clusters, seed), None
    else:
        rows = (_ROWS_PER_CENTROID * k).clamp(min=_MIN_SAMPLE)
        sample, sampled = _sample(x, tokens.count, rows, max(_MIN_SAMPLE, _ROWS_PER_CENTROID * clusters), seed)
        centroids, *nearest = _seed(sample, sampled, k, clusters, seed)
        known = (nearest[0], nearest[1]) if readable(real) and torch.equal(sampled, real) else None
    labels = spherical.lloyd(x, real, centroids, k, iterations, tol, known)[1].labels
    return Plan.group(labels, tokens, clusters, num_slots=max_clusters)


def cluster_adaptive(
    tokens: Tokens,
    criterion: str,
    k_min: int,
    k_max: int,
    seed: int = 0,
    iterations: int = 50,
    tol: float = 1e-4,
    *,
    init: str = "k-means++",
) -> Plan:
    """Merges the tokens of each video into k_min..k_max clusters, as many as the criterion selects.

    Every K is fitted on up to 4096 tokens spread over the video, initialized from the previous K; then all tokens are
    assigned.

    Args:
        tokens: the tokens to merge.
        criterion: "silhouette" (the K with the best silhouette by cosine, exact) or "elbow" (the K farthest below the
            chord of the distortion curve).
        k_min, k_max: bounds of the number of clusters.
        seed: random seed of k-means++.
        iterations: maximum number of Lloyd iterations.
        tol: stop if the centroids move by less than this Frobenius norm.
        init: one of `INITS`.
    """
    x = F.normalize(tokens.features.detach().float(), dim=2)
    sample, real = _sample(x, tokens.count, torch.full_like(tokens.count, _MAX_SAMPLE), _MAX_SAMPLE, seed)
    count = real.sum(1)
    if init == "random":
        centroids = _random_rows(sample, real, k_min, seed)
    else:
        centroids = _seed(sample, real, count.clamp(max=k_min), k_min, seed).centroids
    fits, scores = [], []
    for k in range(k_min, k_max + 1):
        limit = count.clamp(max=k)
        if k > k_min:
            centroids = torch.cat([centroids, spherical.farthest_row(sample, real, centroids, limit)], dim=1)
        centroids, fit = spherical.lloyd(sample, real, centroids, limit, iterations, tol)
        fits.append(F.pad(centroids, (0, 0, 0, k_max - k)))
        scores.append(spherical.silhouette(sample, real, fit) if criterion == "silhouette" else fit.distortion)
    curve = torch.stack(scores, 1)  # [B, number of ks]
    # A K above the number of tokens repeats the result of the K below it, so it never wins alone.
    best = (curve if criterion == "silhouette" else spherical.below_chord(curve)).argmax(1)
    selected = torch.stack(fits, 1)[torch.arange(len(best), device=x.device), best]
    labels = spherical.assign(x, tokens.mask, selected, (best + k_min).minimum(count)).labels
    return Plan.group(labels, tokens, k_max)


def _seed(x: Tensor, real: Tensor, k: Tensor, clusters: int, seed: int) -> spherical.Seeds:
    shape = clusters + spherical.MAX_TOGETHER, _NUM_CANDIDATES
    uniforms = uniform_hash(seed, shape[0] * shape[1], x.device).reshape(shape)
    return spherical.kmeans_plus_plus(x, real, k, clusters, uniforms)


def _random_rows(x: Tensor, real: Tensor, clusters: int, seed: int) -> Tensor:
    """Different random rows of each video as centroids [B,K,C]; a video of fewer rows repeats padding."""
    order = uniform_hash(seed, x.shape[1], x.device).masked_fill(~real, torch.inf).argsort(dim=1, stable=True)
    return take_rows(x, order[:, torch.arange(clusters, device=x.device).clamp(max=x.shape[1] - 1)])


def _sample(x: Tensor, count: Tensor, limit: Tensor, most: int, seed: int) -> tuple[Tensor, Tensor]:
    """Up to `limit` [B] rows of each video, one from each of as many equal parts, [B,n,C]; which are real, bool [B,n].

    Rows at even steps would be the same cells of each frame if the step divided the size of a frame.

    `most` is an upper bound of `limit`.
    """
    n = min(x.shape[1], most)
    position = torch.arange(n, device=x.device).expand(len(count), -1)
    size = count.minimum(limit)[:, None]
    start = position.double() + uniform_hash(seed, n, x.device)
    index = (start * (count[:, None].double() / size.clamp(min=1))).long().clamp(max=x.shape[1] - 1)
    return take_rows(x, index), position < size
