"""Segments of images: label maps as assignments, positions within their boxes, pooling, and superpixels."""

from __future__ import annotations

import torch
from torch import Tensor

from fewtokens.core.grid import Grid
from fewtokens.tokenizers.blocks.transformer import grid_positions, rotary_angles


def assign(labels: Tensor) -> tuple[Tensor, Tensor]:
    """Converts label maps, any integers [B,T,H,W], to one segment per label and frame.

    Segments are sorted by frame, then label.

    Returns:
        The segment of each pixel, int64 [B,T*H*W], and the number of segments of each video, int64 [B].
    """
    values, rank = labels.unique(return_inverse=True)
    frame = torch.arange(labels.shape[0] * labels.shape[1], device=labels.device).view(*labels.shape[:2], 1, 1)
    _, segment = (frame * len(values) + rank).unique(return_inverse=True)
    segment = segment.flatten(1)
    segment = segment - segment.amin(1, keepdim=True)
    return segment, segment.amax(1) + 1


def boxes(assignment: Tensor, grid: Grid, count: int) -> Tensor:
    """The boxes of segments: first row, first column, and the row and column after the last, float32 [B,count,4].

    Args:
        assignment: int64 [B,S], the segment of each pixel; -1 for none.
        grid: the grid of pixels.
        count: number of segments; the box of one without pixels is 0.
    """
    place = grid_positions(grid.T, grid.H, grid.W, device=assignment.device)[:, 1:].expand(len(assignment), -1, -1)
    # A further segment takes the pixels of none.
    index = assignment.where(assignment >= 0, count)[..., None].expand(-1, -1, 2)
    empty = place.new_zeros(len(assignment), count + 1, 2)
    first = empty.scatter_reduce(1, index, place, "amin", include_self=False)
    last = empty.scatter_reduce(1, index, place + 1, "amax", include_self=False)
    return torch.cat([first, last], 2)[:, :count]


def relative_sines(assignment: Tensor, grid: Grid, count: int, width: int) -> Tensor:
    """Sines and cosines of row and column from the first ones of the box of the segment, [B,S,width]."""
    corner = boxes(assignment, grid, count)[..., :2]
    place = grid_positions(grid.T, grid.H, grid.W, device=assignment.device)[:, 1:]
    relative = place - spread(corner, assignment)
    angles = rotary_angles(relative.flatten(0, 1), width, 2).view(*assignment.shape, -1)
    return torch.cat([angles.sin(), angles.cos()], -1)


def spread(values: Tensor, assignment: Tensor) -> Tensor:
    """Copies values [B,N,C] of segments to their pixels, [B,S,C]; 0 for pixels of none."""
    index = assignment.clamp(min=0)[..., None].expand(-1, -1, values.shape[2])
    return values.gather(1, index).masked_fill(assignment[..., None] < 0, 0)


def total(values: Tensor, assignment: Tensor, count: int) -> Tensor:
    """Sums values [B,S,C] of pixels over each segment, [B,count,C]."""
    index = assignment[..., None].expand_as(values)
    return values.new_zeros(len(values), count, values.shape[2]).scatter_add(1, index, values)


def softmax(logits: Tensor, assignment: Tensor, count: int) -> Tensor:
    """Softmax of logits [B,S,C] over the pixels of each segment."""
    index = assignment[..., None].expand_as(logits)
    empty = logits.new_zeros(len(logits), count, logits.shape[2])
    largest = empty.scatter_reduce(1, index, logits.detach(), "amax", include_self=False)
    weights = (logits - spread(largest, assignment)).exp()
    return weights / spread(total(weights, assignment, count), assignment)


def superpixels(frames: Tensor, side: int = 8, *, rounds: int = 4, compactness: float = 0.2) -> Tensor:
    """Divides each frame into superpixels by local k-means over color and place (SLIC, 10.1109/TPAMI.2012.120).

    Differs from SLIC: distances are of RGB instead of Lab, and parts that are not connected stay one segment.

    Args:
        frames: [B,T,3,H,W] in 0..1.
        side: rows and columns between the first centers.
        rounds: updates of the centers.
        compactness: weight of a distance of `side` pixels against one of 1 in color.

    Returns:
        Labels, int64 [B,T,H,W]; unused ones are left out.
    """
    H, W = frames.shape[-2:]
    rows, columns = -(-H // side), -(-W // side)
    y, x = torch.meshgrid(torch.arange(H), torch.arange(W), indexing="ij")
    y, x = (axis.flatten().to(frames.device) for axis in (y, x))
    place = torch.stack([y, x], 1) * (compactness / side)
    colors = frames.float().flatten(0, 1).flatten(2).transpose(1, 2)
    values = torch.cat([colors, place.expand(len(colors), -1, -1)], 2)
    near = [(y // side + i, x // side + j) for i in (-1, 0, 1) for j in (-1, 0, 1)]
    # Centers of the 3 x 3 cells around each pixel, [S,9].
    center = torch.stack([row.clamp(0, rows - 1) * columns + column.clamp(0, columns - 1) for row, column in near], 1)
    labels = (y // side * columns + x // side).expand(len(values), -1)
    for _ in range(rounds):
        size = total(torch.ones_like(values[..., :1]), labels, rows * columns)
        means = torch.where(size > 0, total(values, labels, rows * columns) / size, torch.inf)
        distance = torch.stack([(values - means[:, one]).square().sum(2) for one in center.unbind(1)], 2)
        labels = center.expand(len(values), -1, -1).gather(2, distance.argmin(2, keepdim=True))[..., 0]
    return labels.view(*frames.shape[:2], H, W)
