"""A small video with texture and motion, for tests of codecs and baselines."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def moving_texture(frames: int = 9, height: int = 64, width: int = 64, seed: int = 0) -> Tensor:
    """A random texture, fine in brightness and smooth in color, that moves by one pixel per frame.

    float32 [T,3,H,W] in 0..1.
    """
    generator = torch.Generator().manual_seed(seed)
    size = (height, width + frames)
    brightness = torch.rand(1, 1, height // 4, size[1] // 4, generator=generator)
    color = torch.rand(1, 3, 2, 2, generator=generator)
    texture = 0.7 * F.interpolate(brightness, size=size, mode="bicubic")[0]
    texture = (texture + 0.3 * F.interpolate(color, size=size, mode="bilinear")[0]).clamp(0, 1)
    return torch.stack([texture[:, :, t : t + width] for t in range(frames)])
