"""The cue `pixels` of a language model's cells, from what its encoder receives."""

from __future__ import annotations

from collections.abc import Sequence
from math import isqrt

from torch import Tensor, nn

from fewtokens.core.grid import Grid


def to_unit_pixels(values: Tensor, mean: Sequence[float], std: Sequence[float], *, channel: int = -3) -> Tensor:
    """Maps normalized pixels, or uint8, to 0..1; `channel` is the axis of channels."""
    if not values.is_floating_point():
        return values.float() / 255
    shape = [1] * values.ndim
    shape[channel] = 3
    scale, shift = values.new_tensor(std).reshape(shape), values.new_tensor(mean).reshape(shape)
    return (values * scale + shift).clamp(0, 1)


def cell_pixels(frames: Tensor, grid: Grid, side: int = 8) -> Tensor:
    """Returns the cue `pixels`, [S,1,side*side*3], of frames [T,3,H,W] in 0..1 on a grid of cells.

    Frames are resized so that each cell has `side` x `side` pixels; a cell of a tubelet takes its first frame.
    """
    frames = nn.functional.interpolate(
        frames.float(), size=(grid.H * side, grid.W * side), mode="bilinear", antialias=True, align_corners=False
    )
    frames = frames[:: max(1, len(frames) // grid.T)][: grid.T]
    cells = frames.reshape(grid.T, 3, grid.H, side, grid.W, side).permute(0, 2, 4, 3, 5, 1)
    return cells.reshape(grid.cells, 1, side * side * 3)


def packed_pixels(packed: Tensor, cells: int, side: int, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """Returns the cue `pixels`, [S,P,D], of patches as processors pack them, of S cells.

    Args:
        packed: [n, 3*P*side*side], normalized or uint8; the patches of a cell are consecutive and those of one row
            adjacent.
        cells: S, of which each has merge x merge patches.
        side: the height and width of a patch.
        mean, std: of the normalized pixels.
    """
    merge = isqrt(len(packed) // cells)
    patches = packed.reshape(cells, merge, merge, 3, -1, side, side)
    patches = patches.float() if patches.is_floating_point() else patches
    unit = to_unit_pixels(patches, mean, std, channel=3)
    # cell, sub-frame, row, column, channel
    return unit.permute(0, 4, 1, 5, 2, 6, 3).flatten(2)
