"""An MLP that predicts all tokens of a frame from its mean."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from fewtokens.core.method import Resampled, Resampler, load_weights
from fewtokens.core.tokens import Tokens
from fewtokens.methods.ops.per_frame import check_dim, resample_frames, to_frames


class PoolMlp(Resampler):
    """Predicts the tokens of each frame from its mean feature with an MLP.

    "Pool + MLP", a baseline of TokenLearner (arXiv 2106.11297, table 14): LayerNorm, mean over the cells of the frame,
    then two linear layers. The tokens are new features, attributed equally to all cells of their frame.

    Args:
        keep: number of tokens per frame, written "8/frame".
        dim: channels of the features.
        checkpoint: path of a safetensors file with trained parameters; None initializes them randomly.
    """

    learned = True
    full_grid = True
    paper = "TokenLearner, arXiv 2106.11297, table 14"
    license = "written from the paper"
    cost = "C*C*(1 + num_tokens) MACs per frame"

    def __init__(self, keep: int | str = "8/frame", *, dim: int = 384, checkpoint: str | None = None) -> None:
        super().__init__()
        self.set_budget(keep, units=("per frame",))
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
        """Maps frames [F,H,W,C] to tokens [F,M,C] and their weights [F,M,H*W]."""
        mean = self.norm(x).mean((1, 2))
        features = self.fc2(nn.functional.gelu(self.fc1(mean), approximate="tanh"))
        maps = x.new_full((len(x), self.num_tokens, x.shape[1] * x.shape[2]), 1 / (x.shape[1] * x.shape[2]))
        return features.unflatten(1, (self.num_tokens, self.dim)), maps

    def resample(self, tokens: Tokens, **cues: Any) -> Resampled:
        check_dim(self.name, tokens.C, self.dim)
        features, maps = self.learn(to_frames(tokens).to(self.norm.weight.dtype))
        return resample_frames(tokens, maps, features)
