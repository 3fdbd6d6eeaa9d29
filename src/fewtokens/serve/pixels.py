"""The cue `pixels` from the inputs of an encoder."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from fewtokens.core.grid import Grid


def patch_pixels(
    packed: Tensor, merge: int, tubelet: int, side: int, mean: Sequence[float], std: Sequence[float]
) -> Tensor:
    """Returns the pixels of each cell from patches as packed for the Qwen family: those of a cell are consecutive.

    Args:
        packed: [S*merge*merge, 3*tubelet*side*side], normalized, or uint8.
        merge: number of patches that are merged along each side.
        tubelet: number of frames of a patch.
        side: number of pixels along a side of a patch.
        mean, std: of the normalization, one value per channel.

    Returns:
        [S,tubelet,(merge*side)**2*3] in 0..1.
    """
    # cell, row and column of the patch, channel, frame, row and column in the patch
    patches = packed.reshape(-1, merge, merge, 3, tubelet, side, side)
    unit = _to_unit(patches, mean, std, channel=3)
    return unit.permute(0, 4, 1, 5, 2, 6, 3).reshape(len(unit), tubelet, -1)


def frame_pixels(frames: Tensor, grid: Grid, mean: Sequence[float], std: Sequence[float], side: int = 8) -> Tensor:
    """Returns the pixels of each cell from normalized (or uint8) frames [T,3,H,W], resized to side x side per cell.

    Returns:
        [S,1,side*side*3] in 0..1.
    """
    size = (grid.H * side, grid.W * side)
    unit = nn.functional.interpolate(_to_unit(frames, mean, std, channel=1), size=size, mode="bilinear", antialias=True)
    cells = unit.reshape(grid.T, 3, grid.H, side, grid.W, side).permute(0, 2, 4, 3, 5, 1)
    return cells.reshape(grid.cells, 1, -1)


def _to_unit(pixels: Tensor, mean: Sequence[float], std: Sequence[float], channel: int) -> Tensor:
    """Maps normalized pixels, or uint8, to 0..1; `channel` is the axis of channels."""
    if not pixels.is_floating_point():
        return pixels.float() / 255
    shape = [3 if axis == channel else 1 for axis in range(pixels.ndim)]
    scale, shift = (pixels.new_tensor(list(values)).float().reshape(shape) for values in (std, mean))
    return (pixels.float() * scale + shift).clamp(0, 1)
