"""Functions shared by methods that process each frame separately.

Such a method has `learn(x)`: frames [F,H,W,C] to tokens [F,M,C] and the maps [F,M,H*W] that produced them. Networks
call `learn`; as a method it acts on `Tokens`, and the maps are its attribution.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from fewtokens.core.budget import Budget
from fewtokens.core.grid import Grid
from fewtokens.core.method import Resampled
from fewtokens.core.tokens import Tokens

# Entries of the frames that are processed at a time (4 MiB in float32).
_MAX_ENTRIES = 1 << 20


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


def in_parts(function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """Applies a function of frames [F,...] to a few frames at a time, so that its copies of them stay in the cache.

    All frames are processed at once if a gradient may be recorded, in a compiled network, and on other devices than
    CPUs.
    """
    frames = max(1, _MAX_ENTRIES // max(1, x[:1].numel()))
    if not _inference_on_cpu(x) or frames >= len(x):
        return function(x)
    return torch.cat([function(part) for part in x.split(frames)])


def convolve(layer: nn.Conv2d, x: Tensor) -> Tensor:
    """Applies a 3x3 convolution with padding 1, no bias and C inputs to frames [F,H,W,C]; returns [F,M,H,W].

    For large frames and few outputs, for which the kernels of CPUs are slow, it is one product and nine shifted sums.
    """
    M = layer.out_channels
    large = x[:1].numel() >= _MAX_ENTRIES
    if not (large and M <= 8 and x.dtype == torch.float32 and _inference_on_cpu(x)):
        return layer(x.permute(0, 3, 1, 2))
    F, H, W, _ = x.shape
    taps = x.flatten(1, 2) @ layer.weight.permute(1, 2, 3, 0).flatten(1)  # [F,H*W,9*M]
    parts = taps.transpose(1, 2).reshape(F, 3, 3, M, H, W)
    out = parts[:, 1, 1].clone()
    rows, columns = _shifts(H), _shifts(W)
    for i, (to_row, from_row) in enumerate(rows):
        for j, (to_column, from_column) in enumerate(columns):
            if (i, j) != (1, 1):
                out[..., to_row, to_column] += parts[:, i, j, :, from_row, from_column]
    return out


def _shifts(size: int) -> tuple[tuple[slice, slice], ...]:
    """The outputs and the inputs of each of the three taps along an axis."""
    return (slice(1, None), slice(0, size - 1)), (slice(None), slice(None)), (slice(0, size - 1), slice(1, None))


def _inference_on_cpu(x: Tensor) -> bool:
    other = torch.compiler.is_compiling() or torch.is_autocast_enabled("cpu")
    return x.device.type == "cpu" and not torch.is_grad_enabled() and not other


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
