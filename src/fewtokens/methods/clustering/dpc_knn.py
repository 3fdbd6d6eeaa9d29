"""DPC-kNN clustering of tokens."""

from __future__ import annotations

from fewtokens.core.method import Reducer
from fewtokens.core.plan import Plan
from fewtokens.core.tokens import Tokens
from fewtokens.methods.ops.density import cluster_around_peaks


class DpcKnn(Reducer):
    """Clusters the tokens of a video around density peaks and averages each cluster.

    The K tokens with the highest density times distance to anything denser are the centers; every other token joins its
    nearest center (Euclidean distance), and each cluster becomes its mean.

    Args:
        keep: budget, a fraction of the cells (float), a count (int) or "8/frame": the number of clusters K.
            Default: 0.25.
        neighbors: number of nearest tokens that define the density, the token itself included. Default: 7, as in
            PruneVid and HoliTom (4 in FastVID).
    """

    paper = "DPC-kNN: Du et al., Knowledge-Based Systems 99 (2016); for tokens: TCFormer, arXiv 2204.08680"
    license = "written from the published formulas"
    cost = "O(N^2 C), two passes over all pairs of tokens, in blocks of bounded memory"

    def __init__(self, keep: float | int | str = 0.25, *, neighbors: int = 7) -> None:
        super().__init__()
        self.set_budget(keep)
        if neighbors < 1:
            raise ValueError(f"neighbors must be at least 1 (the token itself), got {neighbors}")
        self.neighbors = neighbors

    def plan(self, tokens: Tokens) -> Plan:
        labels, count = cluster_around_peaks(tokens.features, tokens.mask, self.counts(tokens), self.neighbors)
        return Plan.group(labels, tokens, int(count.max()))
