"""Reconstructions that need no tokenizer, each with its bits; every table of reconstructions shows them.

A stored value has 8 bits and is not entropy-coded: these are the lines that a tokenizer should clear, not codecs.
"""

from __future__ import annotations

import math

import torch.nn.functional as F
from torch import Tensor

from fewtokens.evaluation.reconstruction.codecs import Coded

_BITS_PER_CELL = 3 * 8
# Three sizes of a grid.
_GRID_HEADER = 3 * 16


def area_pooling(frames: Tensor, bits: float) -> Coded:
    """Stores a coarse grid of mean colors, and interpolates it trilinearly to all frames.

    Frames per cell of the grid are a power of two, and height and width of the grid the largest of the video's shape
    that the budget allows; of these grids, the one with the least squared error is used.

    Args:
        frames: [T,3,H,W] in 0..1.
        bits: budget for the clip, at least 24: one color.

    Returns:
        `bits` of the values, at most the budget; `header_bits` of the size of the grid.

    Raises:
        ValueError: the budget is below 24 bits, or frames have another shape or dtype.
    """
    x = _frames(frames)
    T, _, H, W = x.shape
    cells = min(int(bits) // _BITS_PER_CELL, T * H * W)
    if cells < 1:
        raise ValueError(f"area pooling stores at least one color, {_BITS_PER_CELL} bits, got a budget of {bits}")
    volume = x.transpose(0, 1)[None]
    best: tuple[float, tuple[int, int, int], Tensor] | None = None
    for step in (2**k for k in range(math.ceil(math.log2(T)) + 1)):
        times = -(-T // step)
        if times > cells:
            continue
        grid = (times, *_plane(cells // times, H, W))
        coarse = _round(F.adaptive_avg_pool3d(volume, grid))
        fine = F.interpolate(coarse, size=(T, H, W), mode="trilinear")
        error = float((fine - volume).square().mean())
        if best is None or error < best[0]:
            best = error, grid, fine
    assert best is not None  # one cell fits
    _, grid, fine = best
    return Coded(
        "area_pooling",
        fine[0].transpose(0, 1).clamp(0, 1),
        bits=_BITS_PER_CELL * math.prod(grid),
        header_bits=_GRID_HEADER,
        settings={"grid": "x".join(map(str, grid)), "bits_per_value": 8},
    )


def mean_color(frames: Tensor) -> Coded:
    """One color for the clip, 24 bits. Frames are [T,3,H,W] in 0..1."""
    x = _frames(frames)
    return Coded("mean_color", _round(x.mean((0, 2, 3), keepdim=True)).expand_as(x), bits=_BITS_PER_CELL)


def mean_frame(frames: Tensor) -> Coded:
    """The mean over time in every frame, 24·H·W bits: the best still image. Frames are [T,3,H,W] in 0..1."""
    x = _frames(frames)
    return Coded("mean_frame", _round(x.mean(0, keepdim=True)).expand_as(x), bits=_BITS_PER_CELL * x[0, 0].numel())


def repeat_first(frames: Tensor) -> Coded:
    """The first frame in every frame, 24·H·W bits. Frames are [T,3,H,W] in 0..1."""
    x = _frames(frames)
    return Coded("repeat_first", _round(x[:1]).expand_as(x), bits=_BITS_PER_CELL * x[0, 0].numel())


def _plane(cells: int, height: int, width: int) -> tuple[int, int]:
    """The grid with the video's shape and at most `cells` cells."""
    rows = min(height, max(1, math.floor(math.sqrt(cells * height / width))))
    columns = min(width, cells // rows)
    # A plane narrower than a cell leaves room in the other direction.
    return min(height, cells // columns), columns


def _round(x: Tensor) -> Tensor:
    return (x * 255).round() / 255


def _frames(frames: Tensor) -> Tensor:
    if frames.ndim != 4 or frames.shape[1] != 3 or 0 in frames.shape or not frames.is_floating_point():
        raise ValueError(f"frames must be float [T,3,H,W] in 0..1, got {frames.dtype} {list(frames.shape)}")
    return frames.float().clamp(0, 1)
