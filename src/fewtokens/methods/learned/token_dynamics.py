"""A whole video as a few tokens that know where and when they were: centroids, and attention to their map."""

from __future__ import annotations

from typing import Any

from torch import nn

from fewtokens.core.method import Method, load_weights
from fewtokens.core.plan import Plan
from fewtokens.core.tokens import Tokens
from fewtokens.methods.ops.cross_dynamics import CrossDynamics, PaperAttention
from fewtokens.methods.ops.per_frame import check_dim
from fewtokens.methods.ops.token_base import CRITERIA, adaptive, check_bounds, fixed

MODES = ("dynamics", "paper")


class TokenDynamics(Method):
    """The token base of a video (clusters by direction, as `kmeans`), updated by attention to its dynamics map.

    Token Dynamics / VQToken (arXiv 2503.16980). The map says which cluster each cell went to, [T,H,W]: it is
    `Tokens.assignment`. It is given to the tokens by "dynamics" (ours, the default: exactly K rows, indifferent to the
    numbering of the clusters, the plain centroids before training) or by "paper" (the formula of the text). The
    released code, which does something else, is `vqtoken`. Tokens are attributed by cluster.

    Args:
        keep: share of the cells (float) or count (int): K; 32 by default. Not for adaptive length.
        dim: C, channels of the tokens.
        mode: "dynamics" or "paper".
        criterion: "fixed", or "silhouette" or "elbow" for adaptive length.
        between: bounds of the adaptive length.
        seed: of the clustering.
        checkpoint: trained parameters, a safetensors file of `save_weights`; None leaves them as they begin.
    """

    learned = True
    paper = "Token Dynamics / VQToken, arXiv 2503.16980"
    license = "written from the paper; reference code BSD-3"
    cost = "k-means, O(N K C) an iteration; then O(K^2 C + K C^2), whatever N is"

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
            raise ValueError(f"mode must be one of {', '.join(MODES)}, got {mode!r}; the released code is vqtoken")
        if criterion not in ("fixed", *CRITERIA):
            raise ValueError(f"{self.name} chooses K by fixed, silhouette or elbow, not {criterion!r}")
        self.take_budget(keep, default=32, criterion=None if criterion == "fixed" else criterion)
        self.between = (int(between[0]), int(between[1]))
        check_bounds(*self.between)
        self.dim, self.mode, self.criterion = dim, mode, criterion
        self.seed, self.checkpoint = seed, checkpoint
        self.attention: nn.Module = CrossDynamics(dim) if mode == "dynamics" else PaperAttention(dim)
        load_weights(self, checkpoint)

    @property
    def untrained(self) -> bool:
        # Before training "dynamics" leaves the centroids as they are.
        return self.mode != "dynamics" and super().untrained

    def decide(self, tokens: Tokens, **cues: Any) -> Plan:
        """The clusters: where each token goes."""
        if self.budget is not None:
            return fixed(tokens, self.counts(tokens), self.seed)
        return adaptive(tokens, self.criterion, *self.between, self.seed)

    def forward(self, tokens: Tokens, **cues: Any) -> Tokens:
        check_dim(self.name, tokens.C, self.dim)
        base = tokens.apply(self.decide(tokens))
        dtype = next(self.attention.parameters()).dtype
        features = self.attention(base.features.to(dtype), base).to(base.features.dtype)
        return base.replace(features=features.masked_fill(~base.mask[..., None], 0))
