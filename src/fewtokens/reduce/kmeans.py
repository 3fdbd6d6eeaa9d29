"""The token base of Token Dynamics: k-means over the tokens of a video. arXiv 2503.16980, section 3."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from fewtokens.grid import Grid
from fewtokens.method import Method, check_keep, planned_count
from fewtokens.plan import Plan
from fewtokens.reduce import spherical
from fewtokens.reduce.seeded import uniform_hash
from fewtokens.tokens import Tokens

# The number of clusters is chosen on at most this many tokens, evenly spaced.
_SAMPLE = 4096
# Draws for each centre of the greedy k-means++; about 2 + log K, as scikit-learn takes.
_DRAWS = 5


class KMeans(Method):
    """Merges all tokens of a video into K clusters by direction; each token out is a mean of raw tokens.

    Assignment is by cosine, seeded by greedy k-means++. The means are of the raw tokens: the reference code
    averages normalised ones, which throws magnitudes away and needs a fine-tuned language model. Exactly K
    tokens come out: a cluster that runs empty takes the token that fits worst elsewhere.

    The adaptive length fits K = k_min..k_max on up to 4096 evenly spaced tokens, each K started from the one
    before, and takes the K of the best silhouette (cosine, exact) or of the elbow (farthest below the chord
    of the distortion curve); then all tokens are assigned. Several repairs against the reference code, whose
    silhouette ignores the labels and whose elbow always gives k_min.

    Args:
        keep: share of the cells (float) or count (int): K; 32 where nothing is said. Not for adaptive length.
        criterion: "fixed", or "silhouette" or "elbow" for adaptive length.
        k_min, k_max: bounds of the adaptive length.
        iterations: of Lloyd's algorithm at most.
        tol: stop where the centres (unit vectors) move by less, Frobenius norm.
        seed: of k-means++.
    """

    paper = "Token Dynamics / VQToken, arXiv 2503.16980 (token base)"
    licence = "written from the paper; reference code BSD-3"
    cost = "O(N K C) an iteration, in blocks of bounded memory; adaptive length on at most 4096 tokens"
    partition = True
    conserves = True

    def __init__(
        self,
        keep: float | int | None = None,
        *,
        criterion: str = "fixed",
        k_min: int = 12,
        k_max: int = 32,
        iterations: int = 50,
        tol: float = 1e-4,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if criterion not in ("fixed", "silhouette", "elbow"):
            raise ValueError(f"kmeans chooses K by fixed, silhouette or elbow, not {criterion!r}")
        self.budget = criterion == "fixed"
        if not self.budget and keep is not None:
            raise ValueError("kmeans of adaptive length takes k_min= and k_max=, not keep=")
        if not 1 <= k_min <= k_max:
            raise ValueError(f"k_min and k_max must be 1 <= k_min <= k_max, got {k_min} and {k_max}")
        if iterations < 1:
            raise ValueError(f"iterations must be at least 1, got {iterations}")
        self.keep = check_keep(32 if keep is None else keep) if self.budget else None
        self.criterion = criterion
        self.k_min, self.k_max = k_min, k_max
        self.iterations, self.tol, self.seed = iterations, tol, seed

    def planned_count(self, grid: Grid) -> int | None:
        return None if self.keep is None else planned_count(grid, self.keep)

    def plan(self, tokens: Tokens) -> Plan:
        x, real = F.normalize(tokens.features.float(), dim=2), tokens.mask
        if self.budget:
            k = self.counts(tokens)
            start = self._seed(x, real, k)
            centres = spherical.lloyd(x, real, start, k, self.iterations, self.tol)
        else:
            centres, k = self._adaptive(*_sample(x, tokens.count))
        labels = spherical.assign(x, real, centres, k).labels
        return Plan.group(labels, tokens, centres.shape[1])

    def _seed(self, x: Tensor, real: Tensor, k: Tensor) -> Tensor:
        centres = int(k.max())
        draws = uniform_hash(self.seed, centres * _DRAWS, x.device).reshape(centres, _DRAWS)
        return spherical.plus_plus(x, real, draws)

    def _adaptive(self, x: Tensor, real: Tensor) -> tuple[Tensor, Tensor]:
        """Centres [B,k_max,C] and the chosen number of clusters, int64 [B]."""
        count = real.sum(1)
        ks = list(range(self.k_min, self.k_max + 1))
        centres = self._seed(x, real, torch.full_like(count, self.k_min))
        fits, scores = [], []
        for k in ks:
            limit = count.clamp(max=k)
            if k > self.k_min:
                centres = torch.cat([centres, spherical.farthest(x, real, centres, limit)], dim=1)
            centres = spherical.lloyd(x, real, centres, limit, self.iterations, self.tol)
            fit = spherical.assign(x, real, centres, limit)
            score = spherical.silhouette(x, real, fit) if self.criterion == "silhouette" else fit.distortion
            fits.append(F.pad(centres, (0, 0, 0, self.k_max - k)))
            scores.append(score)
        curve = torch.stack(scores, 1)  # [B, number of ks]
        # A K above the number of tokens is the one below it again, so it never wins by itself.
        best = (curve if self.criterion == "silhouette" else spherical.below_chord(curve)).argmax(1)
        chosen = torch.stack(fits, 1)[torch.arange(len(best), device=x.device), best]
        return chosen, (best + self.k_min).minimum(count)


def _sample(x: Tensor, count: Tensor) -> tuple[Tensor, Tensor]:
    """Evenly spaced rows of each video: [B,n,C] and which are real, bool [B,n]."""
    n = min(x.shape[1], _SAMPLE)
    place = torch.arange(n, device=x.device).expand(len(count), -1)
    size = count.clamp(max=n)[:, None]
    index = (place * count[:, None] // size).clamp(max=x.shape[1] - 1)
    return x.gather(1, index[..., None].expand(-1, -1, x.shape[2])), place < size
