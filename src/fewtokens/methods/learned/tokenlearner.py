"""TokenLearner: a few tokens per frame, each the sum under a learned spatial map."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from fewtokens.core.method import Resampled, Resampler, load_weights
from fewtokens.core.tokens import Tokens
from fewtokens.methods.ops.per_frame import (
    check_dim,
    convolve,
    in_parts,
    lecun_normal_,
    resample_frames,
    to_frames,
)

VERSIONS = ("1.0", "1.1")


class TokenLearner(Resampler):
    """Reduces each frame to a few weighted sums of its patches with learned spatial maps.

    TokenLearner: What Can 8 Learned Tokens Do for Images and Videos? (arXiv 2106.11297, section 2). Maps are computed
    from LayerNorm(x) and applied to x. Version 1.0, used for the paper's tables, has four 3x3 convolutions without bias
    and a sigmoid per map and pixel; version 1.1, the released code since March 2022, has two linear layers and a
    softmax over pixels. The paper averages over the pixels; its code sums, so that the norm of a token grows with the
    resolution. `pool` selects one of them.

    Args:
        keep: number of tokens per frame, written "8/frame".
        dim: channels of the features.
        version: "1.0" or "1.1".
        pool: "sum" or "mean" over the pixels; "mean" only for 1.0 (a softmax already sums to 1). Default: "sum".
        hidden: channels of the hidden layer, only for 1.1; None for 64.
        dropout: rate after both layers in training, only for 1.1.
        checkpoint: path of a safetensors file with trained parameters; None initializes them randomly.
    """

    learned = True
    full_grid = True
    paper = "TokenLearner, arXiv 2106.11297"
    license = "reference code Apache-2.0"
    cost = (
        "MACs per frame: H*W*9*(C+3*num_tokens)*num_tokens for version 1.0, H*W*64*(C+num_tokens) for 1.1; pooling "
        "H*W*C*num_tokens"
    )

    def __init__(
        self,
        keep: int | str = "8/frame",
        *,
        dim: int = 384,
        version: str = "1.0",
        pool: str = "sum",
        hidden: int | None = None,
        dropout: float = 0.0,
        checkpoint: str | None = None,
    ) -> None:
        super().__init__()
        self.set_budget(keep, units=("per frame",))
        assert self.budget is not None
        num_tokens = self.num_tokens = int(self.budget.value)
        if version not in VERSIONS:
            raise ValueError(f"version must be one of {', '.join(VERSIONS)}, got {version!r}")
        if pool not in ("sum", "mean"):
            raise ValueError(f"pool must be 'sum' or 'mean', got {pool!r}")
        if version == "1.1" and pool != "sum":
            raise ValueError(
                "pool='mean' requires version 1.0; version 1.1 pools with a softmax, which is a mean already"
            )
        if version == "1.0" and (hidden is not None or dropout):
            raise ValueError("hidden and dropout require version 1.1")
        self.dim, self.version, self.pool = dim, version, pool
        self.hidden, self.dropout, self.checkpoint = hidden, dropout, checkpoint
        self.norm = nn.LayerNorm(dim, eps=1e-6)
        self.scorer = _convolutions(dim, num_tokens) if version == "1.0" else mlp(dim, num_tokens, hidden, dropout)
        load_weights(self, checkpoint)

    def maps(self, x: Tensor) -> Tensor:
        """Spatial maps [F,M,H*W] of frames [F,H,W,C]: in 0..1 for 1.0 (divided by H*W for the mean), sum 1 for 1.1."""
        return in_parts(self._maps, x)

    def _maps(self, x: Tensor) -> Tensor:
        y = self.norm(x)
        if self.version == "1.0":
            first, *others = self.scorer
            assert isinstance(first, nn.Conv2d)
            y = convolve(first, y)
            for layer in others:
                y = layer(y)
            maps = y.flatten(2).sigmoid()
            return maps / maps.shape[2] if self.pool == "mean" else maps
        return self.scorer(y).flatten(1, 2).transpose(1, 2).softmax(-1)

    def learn(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Maps frames [F,H,W,C] to tokens [F,M,C] and their maps [F,M,H*W]."""
        maps = self.maps(x)
        return maps @ x.flatten(1, 2), maps

    def resample(self, tokens: Tokens, **cues: Any) -> Resampled:
        check_dim(self.name, tokens.C, self.dim)
        return resample_frames(tokens, self.maps(to_frames(tokens).to(self.norm.weight.dtype)))


def _convolutions(dim: int, num_tokens: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for channels in (dim, num_tokens, num_tokens, num_tokens):
        conv = nn.Conv2d(channels, num_tokens, 3, padding=1, bias=False)
        lecun_normal_(conv.weight)
        layers += [conv, nn.GELU(approximate="tanh")]
    return nn.Sequential(*layers[:-1])


def mlp(dim: int, out: int, hidden: int | None, dropout: float) -> nn.Sequential:
    """Linear, GELU, Linear, initialized as in the released code."""
    layers = nn.Sequential(
        nn.Linear(dim, hidden or 64),
        nn.GELU(approximate="tanh"),
        nn.Dropout(dropout),
        nn.Linear(hidden or 64, out),
        nn.Dropout(dropout),
    )
    for layer in layers:
        if isinstance(layer, nn.Linear):
            nn.init.xavier_uniform_(layer.weight)
            nn.init.normal_(layer.bias, std=1e-6)
    return layers
