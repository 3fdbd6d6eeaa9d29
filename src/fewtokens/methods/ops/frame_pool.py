"""Average pooling of the tokens of a frame to a constant number."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def pool_shape(P: int, H: int, W: int, count: int) -> tuple[int, int]:
    """Returns the rows and columns of a frame of P tokens after `pool_frame`."""
    fitting = [(rows, count // rows) for rows in range(1, H + 1) if count % rows == 0 and count // rows <= W]
    if P != H * W or not fitting:
        return 1, count
    return (H, W) if count == P else min(fitting, key=lambda shape: abs(shape[0] - shape[1]))


def pool_frame(x: Tensor, H: int, W: int, count: int) -> Tensor:
    """Averages the tokens of each frame to `count`, or returns them unchanged if they are `count`.

    The new tokens form the rectangle nearest to a square that has `count` cells. If the frame has not one token per
    cell, or no rectangle fits in it, each new token is the mean of consecutive ones.

    Args:
        x: the tokens of frames, [...,P,C].
        H, W: rows and columns of a frame.
        count: number of tokens after pooling, at most P.

    Returns:
        [...,count,C].
    """
    P = x.shape[-2]
    if count == P:
        return x
    shape = pool_shape(P, H, W, count)
    if P != H * W or shape[1] > W:
        H, W = 1, P
    maps = x.flatten(0, -3).transpose(1, 2).unflatten(2, (H, W))
    return F.adaptive_avg_pool2d(maps, shape).flatten(2).transpose(1, 2).unflatten(0, x.shape[:-2])
