"""The token base of Token Dynamics (arXiv 2503.16980, section 3): clusters of a video's tokens by direction.

Shared by `kmeans`, whose tokens they are, and `token_dynamics`, which lets the map of the clusters look at them.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from fewtokens.core.plan import Plan
from fewtokens.core.tokens import Tokens
from fewtokens.methods.ops import spherical
from fewtokens.methods.ops.seeded import uniform_hash

# How the number of clusters is chosen where it is not given.
CRITERIA = ("silhouette", "elbow")
# It is chosen on at most this many tokens, evenly spaced.
_SAMPLE = 4096
# Draws for each centre of the greedy k-means++; about 2 + log K, as scikit-learn takes.
_DRAWS = 5


def check_bounds(k_min: int, k_max: int) -> None:
    """Raises a ValueError where the bounds of an adaptive length make no sense."""
    if not 1 <= k_min <= k_max:
        raise ValueError(f"k_min and k_max must be 1 <= k_min <= k_max, got {k_min} and {k_max}")


def fixed(
    tokens: Tokens, k: Tensor, seed: int = 0, iterations: int = 50, tol: float = 1e-4, *, most: int | None = None
) -> Plan:
    """Merges the tokens of each video into k [B] clusters, exactly that many if there are enough tokens.

    `most` is an upper bound of k, where it is known without a look at the data.
    """
    x, real = F.normalize(tokens.features.float(), dim=2), tokens.mask
    centres = spherical.lloyd(x, real, _seed(x, real, most or int(k.max()), seed), k, iterations, tol)
    return _merge(tokens, x, centres, k, exact=most is not None)


def adaptive(
    tokens: Tokens, criterion: str, k_min: int, k_max: int, seed: int = 0, iterations: int = 50, tol: float = 1e-4
) -> Plan:
    """Merges the tokens of each video into as many clusters of k_min..k_max as the criterion finds in it.

    Every K is fitted on up to 4096 evenly spaced tokens, started from the one before; then all tokens are assigned.

    Args:
        criterion: the K of the best "silhouette" (cosine, exact) or of the "elbow" (farthest below the chord of the
            distortion curve).
    """
    x = F.normalize(tokens.features.float(), dim=2)
    few, real = _sample(x, tokens.count)
    count = real.sum(1)
    centres = _seed(few, real, k_min, seed)
    fits, scores = [], []
    for k in range(k_min, k_max + 1):
        limit = count.clamp(max=k)
        if k > k_min:
            centres = torch.cat([centres, spherical.farthest(few, real, centres, limit)], dim=1)
        centres = spherical.lloyd(few, real, centres, limit, iterations, tol)
        fit = spherical.assign(few, real, centres, limit)
        fits.append(F.pad(centres, (0, 0, 0, k_max - k)))
        scores.append(spherical.silhouette(few, real, fit) if criterion == "silhouette" else fit.distortion)
    curve = torch.stack(scores, 1)  # [B, number of ks]
    # A K above the number of tokens is the one below it again, so it never wins by itself.
    best = (curve if criterion == "silhouette" else spherical.below_chord(curve)).argmax(1)
    chosen = torch.stack(fits, 1)[torch.arange(len(best), device=x.device), best]
    return _merge(tokens, x, chosen, (best + k_min).minimum(count))


def _merge(tokens: Tokens, x: Tensor, centres: Tensor, k: Tensor, *, exact: bool = False) -> Plan:
    labels = spherical.assign(x, tokens.mask, centres, k).labels
    return Plan.group(labels, tokens, centres.shape[1], num_slots=centres.shape[1] if exact else None)


def _seed(x: Tensor, real: Tensor, centres: int, seed: int) -> Tensor:
    draws = uniform_hash(seed, centres * _DRAWS, x.device).reshape(centres, _DRAWS)
    return spherical.plus_plus(x, real, draws)


def _sample(x: Tensor, count: Tensor) -> tuple[Tensor, Tensor]:
    """Evenly spaced rows of each video: [B,n,C] and which are real, bool [B,n]."""
    n = min(x.shape[1], _SAMPLE)
    place = torch.arange(n, device=x.device).expand(len(count), -1)
    size = count.clamp(max=n)[:, None]
    index = (place * count[:, None] // size).clamp(max=x.shape[1] - 1)
    return x.gather(1, index[..., None].expand(-1, -1, x.shape[2])), place < size
