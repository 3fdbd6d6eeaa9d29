"""Maps values of the patches of a vision tower to the rows of the language model, as its features are mapped."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor

from fewtokens.core.grid import Grid
from fewtokens.llm.backends.rows import Tiles


def unmapped(problem: str) -> ValueError:
    """The error for a tower whose patches have no known place in the rows of the language model."""
    return ValueError(f"the vision tower cannot provide cues for this model: {problem}")


def join_parts(shapes: Sequence[Sequence[int]], frames: Sequence[int]) -> list[tuple[int, int, int]]:
    """Joins the (t, h, w) in patches of the parts of videos to those of whole videos.

    Args:
        shapes: of each part, in order; a part is a number of frames, or a chunk of frames that are averaged.
        frames: the number of frames of rows of each video.

    Raises:
        ValueError: the parts do not form these frames.
    """
    rows = [1] * len(shapes) if len(shapes) == sum(frames) else [shape[0] for shape in shapes]
    if len(shapes) == len(frames):
        return [(t, h, w) for t, h, w in shapes]
    joined, at = [], 0
    for count in frames:
        start = at
        while sum(rows[start:at]) < count and at < len(shapes):
            at += 1
        if sum(rows[start:at]) != count or len({tuple(shape[1:]) for shape in shapes[start:at]}) != 1:
            raise unmapped(f"parts of {list(shapes)} patches do not form videos of {list(frames)} frames")
        joined.append((sum(shape[0] for shape in shapes[start:at]), shapes[start][1], shapes[start][2]))
    return joined


def pool_frames(values: Tensor, grid: Grid) -> Tensor:
    """Maps values of patches in raster order, [steps,patches,c], to cells [T*H*W,c], as language models pool features.

    If there are more steps than T, a multiple of it, those of a cell are averaged. If the side of a frame divides into
    whole cells, a cell is the mean of its patches, and patches beyond the last whole cell are dropped, as by a pooling
    layer; otherwise the patches are interpolated bilinearly (LLaVA-OneVision).

    Raises:
        ValueError: the patches of a frame do not have the shape of its cells.
    """
    if len(values) % grid.T:
        raise unmapped(f"{len(values)} frames do not form {grid.T}")
    values = values.unflatten(0, (grid.T, -1)).mean(1)
    patches = values.shape[1]
    height = round(math.sqrt(patches * grid.H / grid.W))
    width = patches // max(1, height)
    if height * width != patches or height < grid.H or width < grid.W:
        raise unmapped(f"{patches} patches of a frame do not form {grid.H} x {grid.W} rows")
    image = values.transpose(1, 2).unflatten(2, (height, width))
    side = height // grid.H
    if (height // side, width // side) == (grid.H, grid.W):
        image = F.avg_pool2d(image, side)
    else:
        image = F.interpolate(image, (grid.H, grid.W), mode="bilinear")
    return image.flatten(2).transpose(1, 2).flatten(0, 1)


def pool_tiles(values: Tensor, grid: Grid, tiles: Tiles) -> Tensor:
    """Maps values of the patches of the tiles of an image, [tiles,patches,c], to its cells [H*W,c].

    As in LLaVA-NeXT and later: tiles form one grid, from which the padding of the image is cut off; if it is larger
    than the cells, it is interpolated bilinearly.

    Raises:
        ValueError: the number of tiles or of their patches differs.
    """
    side = math.isqrt(values.shape[1])
    if side**2 != values.shape[1] or len(values) != math.prod(tiles.shape):
        raise unmapped(f"{len(values)} tiles of {values.shape[1]} patches do not form {tiles.shape} squares")
    image = values.unflatten(1, (side, side)).unflatten(0, tiles.shape)  # [rows,columns,side,side,c]
    image = image.permute(4, 0, 2, 1, 3).flatten(3, 4).flatten(1, 2)
    for axis, size in ((1, tiles.size[0]), (2, tiles.size[1])):
        image = image.narrow(axis, (image.shape[axis] - size) // 2, size)
    if tiles.size != (grid.H, grid.W):
        image = F.interpolate(image[None], (grid.H, grid.W), mode="bilinear")[0]
    return image.flatten(1).T


def pool_packed(values: Tensor, grid: Grid, steps: int) -> Tensor:
    """Maps values of patches, [patches,c], to cells [T*H*W,c]; the patches of a cell are consecutive in each step.

    Args:
        steps: the number of steps in time, a multiple of T; the steps of a cell are averaged.
    """
    if steps % grid.T or len(values) % (steps * grid.cells_per_frame):
        raise unmapped(f"{len(values)} patches in {steps} steps do not form {grid.T} x {grid.H} x {grid.W} rows")
    return values.reshape(grid.T, steps // grid.T, grid.cells_per_frame, -1, values.shape[1]).mean((1, 3)).flatten(0, 1)
