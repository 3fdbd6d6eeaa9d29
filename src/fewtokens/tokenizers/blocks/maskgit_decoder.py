"""The convolutional decoder of the VQGAN of MaskGIT."""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn


class MaskGitDecoder(nn.Module):
    """Maps features of patches to images, each level twice as large.

    The decoder of the VQGAN of MaskGIT (arXiv 2202.04200): two residual blocks, then levels of two residual blocks
    with a nearest upsampling and a convolution between levels; no attention.

    Args:
        dim: channels of the features.
        widths: channels of the levels, from the smallest to the largest image; 2^(number - 1) pixels are the side of a
            patch. Each must be a multiple of 32.

    Raises:
        ValueError: the widths are invalid.
    """

    def __init__(self, dim: int, widths: Sequence[int]) -> None:
        super().__init__()
        if not widths or min(widths) < 1 or any(width % 32 for width in widths):
            raise ValueError(f"widths must be multiples of 32, got {tuple(widths)}")
        width = widths[0]
        self.first = nn.Conv2d(dim, width, 3, padding=1)
        self.middle = nn.Sequential(Residual(width, width), Residual(width, width))
        self.levels, self.upsamples = nn.ModuleList(), nn.ModuleList()
        for out in widths:
            self.levels.append(nn.Sequential(Residual(width, out), Residual(out, out)))
            width = out
        self.upsamples.extend(nn.Conv2d(out, out, 3, padding=1) for out in widths[:-1])
        self.last = nn.Sequential(nn.GroupNorm(32, width, 1e-6), nn.SiLU(), nn.Conv2d(width, 3, 3, padding=1))

    def forward(self, x: Tensor) -> Tensor:
        """Maps [F,dim,H,W] to images [F,3,H*p,W*p], about -1..1."""
        x = self.middle(self.first(x))
        for i, level in enumerate(self.levels):
            x = level(x)
            if i < len(self.upsamples):
                x = self.upsamples[i](F.interpolate(x, scale_factor=2, mode="nearest"))
        images: Tensor = self.last(x)
        return images


class Residual(nn.Module):
    """Two 3x3 convolutions without biases, each after GroupNorm and SiLU, added to the input.

    If they change the number of channels, their result is added to a 1x1 convolution of itself and the input is
    dropped, as in the released code and weights.

    Args:
        width, out: channels of input and output.
    """

    def __init__(self, width: int, out: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.GroupNorm(32, width, 1e-6), nn.SiLU(), nn.Conv2d(width, out, 3, padding=1, bias=False),
            nn.GroupNorm(32, out, 1e-6), nn.SiLU(), nn.Conv2d(out, out, 3, padding=1, bias=False),
        )  # fmt: skip
        self.shortcut = None if width == out else nn.Conv2d(out, out, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Maps [F,width,H,W] to [F,out,H,W]."""
        changed: Tensor = self.layers(x)
        return changed + (x if self.shortcut is None else self.shortcut(changed))
