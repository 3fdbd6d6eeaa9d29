"""Tokens as learned, fixed sums over the places of a frame."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fewtokens.core.grid import Grid
from fewtokens.core.method import Method, load_weights
from fewtokens.core.plan import Plan
from fewtokens.core.tokens import Tokens
from fewtokens.methods.ops.per_frame import (
    check_dim,
    check_num_tokens,
    frames_of,
    learn_with,
    plan_of,
    planned,
)


class DenseTokens(Method):
    """One dense layer over the places of a frame makes `num_tokens` tokens; the same sums for every frame.

    "Direct dense generation", an alternative that TokenLearner (arXiv 2106.11297, table 14) is compared with. The
    layer is learned for a grid of `side` x `side` places and shared by all channels; other grids resize it
    (bilinear), keeping the sum of each row.

    Args:
        num_tokens: tokens of each frame.
        dim: channels of the features.
        side: rows and columns of the grid that the layer is learned for.
        checkpoint: a safetensors file with trained parameters; None draws them.
    """

    trainable = True
    resamples = True
    dense = True
    paper = "TokenLearner, arXiv 2106.11297, table 14"
    license = "own"
    cost = "H*W*C*num_tokens MACs a frame"

    def __init__(self, num_tokens: int = 8, *, dim: int = 384, side: int = 14, checkpoint: str | None = None) -> None:
        super().__init__()
        self.num_tokens, self.dim, self.side, self.checkpoint = check_num_tokens(num_tokens), dim, side, checkpoint
        self.layer = nn.Parameter(torch.randn(num_tokens, side, side) / side)
        self.bias = nn.Parameter(torch.zeros(num_tokens, dim))
        load_weights(self, "dense_tokens", checkpoint)

    def maps(self, height: int, width: int) -> Tensor:
        """What each place gives to each token, [M,H*W]; may be negative."""
        layer: Tensor = self.layer
        if (height, width) != tuple(layer.shape[1:]):
            scale = layer.shape[1] * layer.shape[2] / (height * width)
            layer = F.interpolate(layer[None], (height, width), mode="bilinear", align_corners=False)[0] * scale
        return layer.flatten(1)

    def learn(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Frames [F,H,W,C] to tokens [F,M,C] and their maps [F,M,H*W]."""
        made, maps = learn_with(self.maps(x.shape[1], x.shape[2]), x)
        return made + self.bias, maps

    def plan(self, tokens: Tokens, **cues: Any) -> Plan:
        check_dim(self.name, tokens.C, self.dim)
        frames = frames_of(tokens, self.name)
        return plan_of(tokens, self.maps(tokens.grid.H, tokens.grid.W).expand(len(frames), -1, -1))

    def forward(self, tokens: Tokens, **cues: Any) -> Tokens:
        # Attribution by magnitude: a place with a negative weight is used as well.
        plan = self.plan(tokens)
        assert plan.weights is not None
        shown = tokens.apply(Plan(plan.count, plan.num_slots, weights=plan.weights.abs() + 1e-12 * (plan.weights == 0)))
        made = plan.move(tokens.features) + self.bias.repeat(tokens.grid.T, 1).to(tokens.features.dtype)
        return shown.replace(features=made.masked_fill(~shown.mask[..., None], 0))

    def planned_count(self, grid: Grid) -> int:
        return planned(grid, self.num_tokens)
