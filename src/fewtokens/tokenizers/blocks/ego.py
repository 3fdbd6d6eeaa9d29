"""Alignment of features seen from above with the pose of a vehicle."""

from __future__ import annotations

import torch
from torch import Tensor


def align(features: Tensor, source: Tensor, target: Tensor) -> Tensor:
    """Resamples features in the frame of one pose at the places of the cells in the frame of another; 0 outside.

    Bilinear; exact for whole cells without rotation. The vehicle is in the middle of the grid.

    Args:
        features: [N,C,H,W].
        source, target: poses [N,3]: row and column in cells, and the angle from rows to columns in radians.
    """
    N, C, H, W = features.shape
    rows = torch.arange(H, device=features.device) - (H - 1) / 2
    columns = torch.arange(W, device=features.device) - (W - 1) / 2
    own = torch.stack(torch.meshgrid(rows, columns, indexing="ij"), -1).reshape(1, -1, 2).to(source.dtype)
    shift = (target - source)[:, None, :2]
    place = _turn(_turn(own, target[:, 2]) + shift, -source[:, 2])
    row, column = place[..., 0] + (H - 1) / 2, place[..., 1] + (W - 1) / 2
    flat, result = features.flatten(2), features.new_zeros(N, C, H * W)
    for y in (row.floor(), row.floor() + 1):
        for x in (column.floor(), column.floor() + 1):
            weight = (1 - (row - y).abs()) * (1 - (column - x).abs())
            inside = (y >= 0) & (y < H) & (x >= 0) & (x < W)
            index = (y.clamp(0, H - 1) * W + x.clamp(0, W - 1)).long()
            picked = flat.take_along_dim(index[:, None], 2)
            result = result + picked * (weight * inside)[:, None].to(features.dtype)
    return result.unflatten(2, (H, W))


def _turn(points: Tensor, angle: Tensor) -> Tensor:
    """Rotates points [N,P,2] by angles [N]."""
    cos, sin = angle.cos()[:, None], angle.sin()[:, None]
    y, x = points.unbind(-1)
    return torch.stack([cos * y - sin * x, sin * y + cos * x], -1)
