"""A bottleneck of few channels without noise or codes."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from fewtokens.core.grid import Grid
from fewtokens.core.method import Method, load_weights
from fewtokens.core.plan import Plan
from fewtokens.core.tokens import Tokens
from fewtokens.methods.ops.codes import project, projection
from fewtokens.methods.ops.per_frame import check_dim

# Smallest standard deviation of a token that is standardized.
_EPS = 1e-5


class Bottleneck(Method):
    """Maps each token to few channels by a linear layer or an MLP, and may standardize them.

    The bottleneck of UniFlow (arXiv 2510.10575), an MLP with GELU, and of Semanticist (arXiv 2503.08685), whose tokens
    have mean 0 and standard deviation 1 over their channels in place of a KL divergence (with n - 1 in the variance, as
    in its code). All tokens are kept, and there are no losses and no codes.

    Args:
        channels: channels of the new tokens. None for as many as before.
        dim: channels of the tokens.
        hidden: hidden channels of an MLP; None for a linear layer, which is omitted if the number is unchanged.
        standardize: whether to standardize each token over its channels, of which there must be at least 2.
        checkpoint: path of a safetensors file with trained parameters; None initializes them randomly.
    """

    learned = True
    paper = "UniFlow, arXiv 2510.10575; Semanticist, arXiv 2503.08685"
    license = "written from the papers"
    cost = "O(N C D) for D channels"

    def __init__(
        self,
        channels: int | None = None,
        *,
        dim: int = 384,
        hidden: int | None = None,
        standardize: bool = False,
        checkpoint: str | None = None,
    ) -> None:
        super().__init__()
        out = dim if channels is None else channels
        if out < 1 or (hidden is not None and hidden < 1):
            raise ValueError(f"channels and hidden must be at least 1, got {out} and {hidden}")
        if standardize and out < 2:
            raise ValueError(f"standardize requires at least 2 channels, got {out}")
        self.channels, self.dim, self.hidden, self.standardize = channels, dim, hidden, standardize
        self.checkpoint = checkpoint
        self.project = (
            nn.Sequential(nn.Linear(dim, hidden), nn.GELU(), nn.Linear(hidden, out)) if hidden else projection(dim, out)
        )
        load_weights(self, checkpoint)

    @property
    def out_dim(self) -> int:
        """The number of channels of the new tokens."""
        return self.channels or self.dim

    def forward(self, tokens: Tokens, **cues: Any) -> Tokens:
        check_dim(self.name, tokens.C, self.dim)
        x: Tensor = project(self.project, tokens.features)
        if self.standardize:
            x = (x - x.mean(-1, keepdim=True)) / x.std(-1, keepdim=True).clamp(min=_EPS)
        features = x.to(tokens.features.dtype).masked_fill(~tokens.mask[..., None], 0)
        return tokens.replace(features=features, codes=None)

    def decide(self, tokens: Tokens, **cues: Any) -> Plan:
        return Plan.identity(tokens)

    def planned_count(self, grid: Grid) -> int:
        return grid.cells

    @property
    def causal(self) -> bool:
        return True

    def step(self, tokens: Tokens, state: Any = None, **cues: Any) -> tuple[Tokens, Any]:
        return self(tokens, **cues), None
