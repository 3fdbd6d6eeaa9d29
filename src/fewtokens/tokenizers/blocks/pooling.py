"""Pooling and resizing in half precision also on a CPU, where torch has no kernels for them."""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor


def mean_pool3d(x: Tensor, size: tuple[int, int, int]) -> Tensor:
    """The mean over blocks of [B,C,T,H,W]."""
    if x.device.type == "cpu":
        return F.avg_pool3d(x.float(), size).to(x.dtype)
    return F.avg_pool3d(x, size)


def resize(images: Tensor, size: Sequence[int]) -> Tensor:
    """Resizes images [N,C,H,W] to a height and width, bilinearly, without aliasing."""
    resized = F.interpolate(images.float(), tuple(size), mode="bilinear", antialias=True, align_corners=False)
    return resized.to(images.dtype)
