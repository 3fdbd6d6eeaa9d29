"""What the per-frame learners share: a module that looks at one frame's grid, and a whole video's tokens.

A learner has `learn(x)`: frames [F,H,W,C] to tokens [F,M,C] and the maps [F,M,H*W] that they were made with.
Networks call `learn`; as a method it works on `Tokens`, and its maps are the attribution.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from fewtokens.core.budget import Budget
from fewtokens.core.grid import Grid
from fewtokens.core.method import Resampled
from fewtokens.core.tokens import Tokens


def check_dim(name: str, found: int, dim: int) -> None:
    """Raises a ValueError where features have other channels than the method was built for."""
    if found != dim:
        raise ValueError(f"{name} was built for {dim} channels, these tokens have {found}; say dim={found}")


def frames_of(tokens: Tokens, name: str) -> Tensor:
    """The features as frames [B*T,H,W,C]; a ValueError in the name of `name` where cells are missing."""
    return tokens.require_full_grid(name).features.reshape(-1, tokens.grid.H, tokens.grid.W, tokens.C)


def resampled_frames(tokens: Tokens, maps: Tensor, features: Tensor | None = None) -> Resampled:
    """The tokens of each frame, frame after frame.

    Args:
        tokens: one for each cell.
        maps: [B*T,M,H*W], what each cell of a frame gives to its tokens.
        features: [B*T,M,C] new features; None where they are the sums by `maps`.
    """
    B, T = tokens.B, tokens.grid.T
    M = maps.shape[1]
    own = torch.eye(T, device=maps.device, dtype=maps.dtype)
    weights = maps.reshape(B, T, M, 1, -1) * own[:, None, :, None]
    lengths = tokens.mask.reshape(B, T, -1).any(2).sum(1)
    new = None if features is None else features.reshape(B, T * M, -1)
    return Resampled(new, weights.reshape(B, T * M, -1), lengths * M)


def separable(rows: Tensor, columns: Tensor) -> Tensor:
    """Maps [R*C,H*W] out of what each place gives to R rows [R,H] and to C columns [C,W]."""
    return (rows[:, None, :, None] * columns[None, :, None, :]).flatten(2).flatten(0, 1)


def learn_with(maps: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
    """Frames [F,H,W,C] by the same maps [M,H*W] for every frame: tokens [F,M,C] and the maps [F,M,H*W]."""
    maps = maps.to(x.dtype).expand(len(x), -1, -1)
    return maps @ x.flatten(1, 2), maps


def tokens_per_frame(grid: Grid, budget: Budget) -> int:
    """How many tokens each frame has at a budget of a share of the cells or of a count for each frame, at least 1."""
    return max(1, int(budget.amount(grid.frame) + 1e-6))


def lecun_normal_(weight: Tensor) -> None:
    """Truncated normal of variance 1/fan_in, the default of flax."""
    fan_in = weight[0].numel()
    # The standard deviation of a normal cut at two of its own is 0.8796 of it.
    std = math.sqrt(1 / fan_in) / 0.87962566103423978
    nn.init.trunc_normal_(weight, std=std, a=-2 * std, b=2 * std)
