"""Functions shared by methods that process each frame separately.

Such a method has `learn(x)`: frames [F,H,W,C] to tokens [F,M,C] and the maps [F,M,H*W] that produced them. Networks
call `learn`; as a method it acts on `Tokens`, and the maps are its attribution.
"""

from __future__ import annotations

import math

from torch import Tensor, nn

from fewtokens.core.budget import Budget
from fewtokens.core.grid import Grid
from fewtokens.core.method import Resampled
from fewtokens.core.tokens import Tokens


def check_dim(name: str, actual: int, dim: int) -> None:
    """Raises a ValueError if the features have a different number of channels than the method was built for."""
    if actual != dim:
        raise ValueError(f"{name} was built for {dim} channels, but these tokens have {actual}; set dim={actual}")


def to_frames(tokens: Tokens) -> Tensor:
    """The features of one token per cell as frames [B*T,H,W,C]."""
    return tokens.features.reshape(-1, tokens.grid.H, tokens.grid.W, tokens.C)


def resample_frames(tokens: Tokens, maps: Tensor, features: Tensor | None = None) -> Resampled:
    """The tokens of each frame, in frame order.

    Args:
        tokens: one for each cell.
        maps: [B*T,M,H*W], the weight of each cell of a frame in each of its tokens.
        features: [B*T,M,C] new features. Default: the sums weighted by `maps`.
    """
    T = tokens.grid.T
    maps = maps.unflatten(0, (-1, T))
    lengths = tokens.mask.unflatten(1, (T, -1)).any(2).sum(1)
    new = None if features is None else features.reshape(tokens.B, -1, features.shape[-1])
    return Resampled(new, maps, lengths * maps.shape[2])


def separable_maps(rows: Tensor, columns: Tensor) -> Tensor:
    """Maps [R*C,H*W] from the weights of each position in R rows [R,H] and in C columns [C,W]."""
    return (rows[:, None, :, None] * columns[None, :, None, :]).flatten(2).flatten(0, 1)


def apply_maps(maps: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
    """Applies the same maps [M,H*W] to all frames [F,H,W,C]; returns tokens [F,M,C] and the maps [F,M,H*W]."""
    maps = maps.to(x.dtype).expand(len(x), -1, -1)
    return maps @ x.flatten(1, 2), maps


def tokens_per_frame(grid: Grid, budget: Budget) -> int:
    """The number of tokens per frame, at least 1, for a budget that is a fraction of the cells or a count per frame."""
    return max(1, int(budget.amount(grid.frame) + 1e-6))


def lecun_normal_(weight: Tensor) -> None:
    """Truncated normal initialization with variance 1/fan_in, the default of flax."""
    fan_in = weight[0].numel()
    # A normal truncated at two standard deviations has 0.8796 of its standard deviation.
    std = math.sqrt(1 / fan_in) / 0.87962566103423978
    nn.init.trunc_normal_(weight, std=std, a=-2 * std, b=2 * std)
