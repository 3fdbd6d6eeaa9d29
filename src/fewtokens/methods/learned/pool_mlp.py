"""Tokens made from the mean of a frame by an MLP."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from fewtokens.core.grid import Grid
from fewtokens.core.method import Method, load_weights
from fewtokens.core.tokens import Tokens
from fewtokens.methods.ops.per_frame import check_dim, check_num_tokens, frames_of, plan_of, planned


class PoolMlp(Method):
    """The mean of a frame goes through an MLP that gives all its tokens at once.

    "Pool + MLP", an alternative that TokenLearner (arXiv 2106.11297, table 14) is compared with. The tokens are new
    features; their attribution is the whole frame, equally.

    Args:
        num_tokens: tokens of each frame.
        dim: channels of the features.
        checkpoint: a safetensors file with trained parameters; None draws them.
    """

    trainable = True
    resamples = True
    dense = True
    paper = "TokenLearner, arXiv 2106.11297, table 14"
    license = "own"
    cost = "C*C*(1 + num_tokens) MACs a frame"

    def __init__(self, num_tokens: int = 8, *, dim: int = 384, checkpoint: str | None = None) -> None:
        super().__init__()
        self.num_tokens, self.dim, self.checkpoint = check_num_tokens(num_tokens), dim, checkpoint
        self.norm = nn.LayerNorm(dim, eps=1e-6)
        self.fc1 = nn.Linear(dim, dim)
        self.fc2 = nn.Linear(dim, num_tokens * dim)
        for layer in (self.fc1, self.fc2):
            nn.init.xavier_uniform_(layer.weight)
            nn.init.zeros_(layer.bias)
        load_weights(self, "pool_mlp", checkpoint)

    def learn(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Frames [F,H,W,C] to tokens [F,M,C] and their maps [F,M,H*W]."""
        mean = self.norm(x).mean((1, 2))
        made = self.fc2(nn.functional.gelu(self.fc1(mean), approximate="tanh"))
        maps = x.new_full((len(x), self.num_tokens, x.shape[1] * x.shape[2]), 1 / (x.shape[1] * x.shape[2]))
        return made.unflatten(1, (self.num_tokens, self.dim)), maps

    def forward(self, tokens: Tokens, **cues: Any) -> Tokens:
        check_dim(self.name, tokens.C, self.dim)
        made, maps = self.learn(frames_of(tokens, self.name).to(self.norm.weight.dtype))
        shown = tokens.apply(plan_of(tokens, maps))
        features = made.reshape(tokens.B, -1, tokens.C).to(tokens.features.dtype)
        return shown.replace(features=features.masked_fill(~shown.mask[..., None], 0))

    def planned_count(self, grid: Grid) -> int:
        return planned(grid, self.num_tokens)
