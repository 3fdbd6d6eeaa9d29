"""The token base of Token Dynamics: k-means over the tokens of a video. arXiv 2503.16980, section 3."""

from __future__ import annotations

from fewtokens.core.method import Reducer
from fewtokens.core.plan import Plan
from fewtokens.core.tokens import Tokens
from fewtokens.methods.ops.token_base import CRITERIA, adaptive, check_bounds, fixed


class KMeans(Reducer):
    """Merges all tokens of a video into K clusters by direction; each token out is a mean of raw tokens.

    Assignment is by cosine, seeded by greedy k-means++. The means are of the raw tokens: the reference code
    averages normalised ones, which throws magnitudes away and needs a fine-tuned language model. Exactly K
    tokens come out: a cluster that runs empty takes the token that fits worst elsewhere.

    The adaptive length fits K = k_min..k_max on up to 4096 evenly spaced tokens, each K started from the one
    before, and takes the K of the best silhouette (cosine, exact) or of the elbow (farthest below the chord
    of the distortion curve); then all tokens are assigned. Several repairs against the reference code, whose
    silhouette ignores the labels and whose elbow always gives k_min.

    Args:
        keep: share of the cells (float) or count (int): K; 32 by default. Not for adaptive length.
        criterion: "fixed", or "silhouette" or "elbow" for adaptive length.
        k_min, k_max: bounds of the adaptive length.
        iterations: of Lloyd's algorithm at most.
        tol: stop where the centres (unit vectors) move by less, Frobenius norm.
        seed: of k-means++.
    """

    paper = "Token Dynamics / VQToken, arXiv 2503.16980 (token base)"
    license = "written from the paper; reference code BSD-3"
    cost = "O(N K C) an iteration, in blocks of bounded memory; adaptive length on at most 4096 tokens"

    def __init__(
        self,
        keep: float | int | str | None = None,
        *,
        criterion: str = "fixed",
        k_min: int = 12,
        k_max: int = 32,
        iterations: int = 50,
        tol: float = 1e-4,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if criterion not in ("fixed", *CRITERIA):
            raise ValueError(f"kmeans chooses K by fixed, silhouette or elbow, not {criterion!r}")
        check_bounds(k_min, k_max)
        if iterations < 1:
            raise ValueError(f"iterations must be at least 1, got {iterations}")
        adaptive = None if criterion == "fixed" else criterion
        self.take_budget(keep, default=32, criterion=adaptive)
        self.criterion = criterion
        self.k_min, self.k_max = k_min, k_max
        self.iterations, self.tol, self.seed = iterations, tol, seed

    def plan(self, tokens: Tokens) -> Plan:
        if self.budget:
            most = self.max_slots(tokens)
            return fixed(tokens, self.counts(tokens), self.seed, self.iterations, self.tol, most=most)
        return adaptive(tokens, self.criterion, self.k_min, self.k_max, self.seed, self.iterations, self.tol)
