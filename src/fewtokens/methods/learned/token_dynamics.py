"""Token Dynamics: centroids of a video, updated by attention to the space-time map of their clusters."""

from __future__ import annotations

from typing import Any

from torch import nn

from fewtokens.core.method import Method, load_weights
from fewtokens.core.plan import Plan
from fewtokens.core.tokens import Tokens
from fewtokens.methods.ops.cross_dynamics import CrossDynamics, PaperAttention
from fewtokens.methods.ops.per_frame import check_dim
from fewtokens.methods.ops.token_base import CRITERIA, check_bounds, cluster_adaptive, cluster_fixed

MODES = ("dynamics", "paper")


class TokenDynamics(Method):
    """Clusters a video into K centroids and updates them by attention to their space-time map.

    Token Dynamics / VQToken (arXiv 2503.16980). The clusters are those of `kmeans` (by direction); the dynamics map
    [T,H,W] holds the cluster of each cell, which is `Tokens.assignment`. Two ways to attend to it: "dynamics" (ours,
    the default) returns exactly K tokens, does not depend on the numbering of the clusters, and is the identity on the
    centroids at initialization; "paper" is the formula of the text. The released code differs from both and is
    `vqtoken`. Attribution follows the clusters.

    Args:
        keep: K, as a fraction of the cells (float in (0, 1]) or a number of tokens (int). Default: 32. Only for
            criterion="fixed".
        dim: C, channels of the features.
        mode: "dynamics" or "paper".
        criterion: "fixed", or "silhouette" or "elbow" to choose K for each video.
        between: smallest and largest K if it is chosen for each video.
        seed: random seed of the clustering.
        checkpoint: path of a safetensors file with trained parameters; None leaves them at initialization.
    """

    learned = True
    paper = "Token Dynamics / VQToken, arXiv 2503.16980"
    license = "written from the paper; reference code BSD-3"
    cost = "k-means, O(N K C) per iteration; then O(K^2 C + K C^2), independent of N"

    def __init__(
        self,
        keep: float | int | str | None = None,
        *,
        dim: int = 384,
        mode: str = "dynamics",
        criterion: str = "fixed",
        between: tuple[int, int] = (12, 32),
        seed: int = 0,
        checkpoint: str | None = None,
    ) -> None:
        super().__init__()
        if mode not in MODES:
            raise ValueError(f"mode must be one of {', '.join(MODES)}, got {mode!r}; for the released code use vqtoken")
        if criterion not in ("fixed", *CRITERIA):
            raise ValueError(f"criterion must be one of fixed, {', '.join(CRITERIA)}, got {criterion!r}")
        self.set_budget(keep, default=32, criterion=None if criterion == "fixed" else criterion)
        self.between = (int(between[0]), int(between[1]))
        check_bounds(*self.between)
        self.dim, self.mode, self.criterion = dim, mode, criterion
        self.seed, self.checkpoint = seed, checkpoint
        self.attention: nn.Module = CrossDynamics(dim) if mode == "dynamics" else PaperAttention(dim)
        load_weights(self, checkpoint)

    @property
    def untrained(self) -> bool:
        # "dynamics" is the identity on the centroids at initialization.
        return self.mode != "dynamics" and super().untrained

    def decide(self, tokens: Tokens, **cues: Any) -> Plan:
        """Clusters the tokens."""
        if self.budget is not None:
            return cluster_fixed(tokens, self.counts(tokens), self.seed)
        return cluster_adaptive(tokens, self.criterion, *self.between, self.seed)

    def forward(self, tokens: Tokens, **cues: Any) -> Tokens:
        check_dim(self.name, tokens.C, self.dim)
        base = tokens.apply(self.decide(tokens))
        dtype = next(self.attention.parameters()).dtype
        features = self.attention(base.features.to(dtype), base).to(base.features.dtype)
        return base.replace(features=features.masked_fill(~base.mask[..., None], 0))
