"""Tokens made from the mean of a frame by an MLP."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from fewtokens.core.method import Resampled, Resampler, load_weights
from fewtokens.core.tokens import Tokens
from fewtokens.methods.ops.per_frame import check_dim, frames_of, resampled_frames


class PoolMlp(Resampler):
    """The mean of a frame goes through an MLP that gives all its tokens at once.

    "Pool + MLP", an alternative that TokenLearner (arXiv 2106.11297, table 14) is compared with. The tokens are new
    features; their attribution is the whole frame, equally.

    Args:
        keep: tokens of each frame, written "8/frame".
        dim: channels of the features.
        checkpoint: a safetensors file with trained parameters; None draws them.
    """

    learned = True
    full_grid = True
    paper = "TokenLearner, arXiv 2106.11297, table 14"
    license = "own"
    cost = "C*C*(1 + num_tokens) MACs a frame"

    def __init__(self, keep: int | str = "8/frame", *, dim: int = 384, checkpoint: str | None = None) -> None:
        super().__init__()
        self.take_budget(keep, units=("per frame",))
        assert self.budget is not None
        num_tokens = self.num_tokens = int(self.budget.value)
        self.dim, self.checkpoint = dim, checkpoint
        self.norm = nn.LayerNorm(dim, eps=1e-6)
        self.fc1 = nn.Linear(dim, dim)
        self.fc2 = nn.Linear(dim, num_tokens * dim)
        for layer in (self.fc1, self.fc2):
            nn.init.xavier_uniform_(layer.weight)
            nn.init.zeros_(layer.bias)
        load_weights(self, checkpoint)

    def learn(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Frames [F,H,W,C] to tokens [F,M,C] and their maps [F,M,H*W]."""
        mean = self.norm(x).mean((1, 2))
        made = self.fc2(nn.functional.gelu(self.fc1(mean), approximate="tanh"))
        maps = x.new_full((len(x), self.num_tokens, x.shape[1] * x.shape[2]), 1 / (x.shape[1] * x.shape[2]))
        return made.unflatten(1, (self.num_tokens, self.dim)), maps

    def resample(self, tokens: Tokens, **cues: Any) -> Resampled:
        check_dim(self.name, tokens.C, self.dim)
        features, maps = self.learn(frames_of(tokens, self.name).to(self.norm.weight.dtype))
        return resampled_frames(tokens, maps, features)
