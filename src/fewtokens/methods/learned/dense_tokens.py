"""A learned linear layer over the positions of a frame, the same for every input."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fewtokens.core.method import Resampled, Resampler, load_weights
from fewtokens.core.tokens import Tokens
from fewtokens.methods.ops.per_frame import (
    apply_maps,
    check_dim,
    resample_frames,
    to_frames,
)


class DenseTokens(Resampler):
    """Reduces each frame to a few tokens with one learned linear layer over its positions.

    "Direct dense generation", a baseline of TokenLearner (arXiv 2106.11297, table 14). The weights do not depend on the
    input: every frame and every channel uses the same sums. The layer is learned for a grid of `side` x `side` cells;
    for other grids it is resized (bilinear) and each row keeps its sum. The soft weights are the absolute values of the
    layer.

    Args:
        keep: number of tokens per frame, written "8/frame".
        dim: channels of the features.
        side: rows and columns of the grid that the layer is learned for.
        checkpoint: path of a safetensors file with trained parameters; None initializes them randomly.
    """

    learned = True
    full_grid = True
    paper = "TokenLearner, arXiv 2106.11297, table 14"
    license = "written from the paper"
    cost = "H*W*C*num_tokens MACs per frame"

    def __init__(
        self, keep: int | str = "8/frame", *, dim: int = 384, side: int = 14, checkpoint: str | None = None
    ) -> None:
        super().__init__()
        self.set_budget(keep, units=("per frame",))
        assert self.budget is not None
        num_tokens = self.num_tokens = int(self.budget.value)
        self.dim, self.side, self.checkpoint = dim, side, checkpoint
        self.layer = nn.Parameter(torch.randn(num_tokens, side, side) / side)
        self.bias = nn.Parameter(torch.zeros(num_tokens, dim))
        load_weights(self, checkpoint)

    def maps(self, height: int, width: int) -> Tensor:
        """Weight of each position in each token, [M,H*W]; may be negative."""
        layer: Tensor = self.layer
        if (height, width) != tuple(layer.shape[1:]):
            scale = layer.shape[1] * layer.shape[2] / (height * width)
            layer = F.interpolate(layer[None], (height, width), mode="bilinear", align_corners=False)[0] * scale
        return layer.flatten(1)

    def learn(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Maps frames [F,H,W,C] to tokens [F,M,C] and their weights [F,M,H*W]."""
        sums, maps = apply_maps(self.maps(x.shape[1], x.shape[2]), x)
        return sums + self.bias, maps

    def resample(self, tokens: Tokens, **cues: Any) -> Resampled:
        check_dim(self.name, tokens.C, self.dim)
        x = to_frames(tokens)
        maps = self.maps(tokens.grid.H, tokens.grid.W).expand(len(x), -1, -1)
        dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
        features = maps.to(dtype) @ x.flatten(1, 2).to(dtype) + self.bias
        # Attribution by magnitude: a position with a negative weight contributes too.
        return resample_frames(tokens, maps.abs() + 1e-12 * (maps == 0), features)
