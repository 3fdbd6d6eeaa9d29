"""The convolutional encoder and decoder of images of VQGAN and later tokenizers."""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from fewtokens.encoders.transformer import Attention


class ConvUp(nn.Module):
    """Maps features of patches to images, each level twice as large (VQGAN, arXiv 2012.09841).

    A convolution, a residual block with attention and another one, then levels of residual blocks, with a nearest
    upsampling and a convolution between levels.

    Args:
        dim: channels of the features.
        widths: channels of the levels, from the smallest to the largest image; 2^(number - 1) pixels are the side of a
            patch.
        blocks: residual blocks of a level.
    """

    def __init__(self, dim: int, widths: Sequence[int], blocks: int = 3) -> None:
        super().__init__()
        if not widths or min(widths) < 1 or blocks < 1:
            raise ValueError(f"widths and blocks must be at least 1, got {tuple(widths)} and {blocks}")
        width = widths[0]
        self.first = nn.Conv2d(dim, width, 3, padding=1)
        self.middle = nn.ModuleList([_Residual(width, width), _SelfAttention(width), _Residual(width, width)])
        self.levels = nn.ModuleList()
        for i, out in enumerate(widths):
            level = nn.ModuleList([_Residual(width if j == 0 else out, out) for j in range(blocks)])
            if i < len(widths) - 1:
                level.append(_Upsample(out))
            self.levels.append(level)
            width = out
        self.last = nn.Sequential(_norm(width), nn.SiLU(), nn.Conv2d(width, 3, 3, padding=1))

    def forward(self, x: Tensor) -> Tensor:
        """Maps [F,dim,H,W] to images [F,3,H*p,W*p], about -1..1."""
        x = self.first(x)
        for layer in self.middle:
            x = layer(x)
        for level in self.levels:
            assert isinstance(level, nn.ModuleList)
            for layer in level:
                x = layer(x)
        images: Tensor = self.last(x)
        return images


class ConvDown(nn.Module):
    """The mirror of `ConvUp`: maps images to features of patches, each level half as large.

    Args:
        dim: channels of the features.
        widths: channels of the levels, from the largest to the smallest image.
        blocks: residual blocks of a level.
    """

    def __init__(self, dim: int, widths: Sequence[int], blocks: int = 2) -> None:
        super().__init__()
        if not widths or min(widths) < 1 or blocks < 1:
            raise ValueError(f"widths and blocks must be at least 1, got {tuple(widths)} and {blocks}")
        width = widths[0]
        layers: list[nn.Module] = [nn.Conv2d(3, width, 3, padding=1)]
        for i, out in enumerate(widths):
            layers += [_Residual(width if j == 0 else out, out) for j in range(blocks)]
            if i < len(widths) - 1:
                layers.append(nn.Conv2d(out, out, 3, stride=2, padding=1))
            width = out
        layers += [_Residual(width, width), _SelfAttention(width), _Residual(width, width)]
        self.layers = nn.Sequential(*layers, _norm(width), nn.SiLU(), nn.Conv2d(width, dim, 3, padding=1))

    def forward(self, x: Tensor) -> Tensor:
        """Maps images [F,3,H,W] to [F,dim,H/p,W/p]."""
        features: Tensor = self.layers(x)
        return features


def _norm(width: int) -> nn.GroupNorm:
    return nn.GroupNorm(32 if width % 32 == 0 else 1, width, 1e-6)


class _Residual(nn.Module):
    def __init__(self, width: int, out: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            _norm(width), nn.SiLU(), nn.Conv2d(width, out, 3, padding=1),
            _norm(out), nn.SiLU(), nn.Conv2d(out, out, 3, padding=1),
        )  # fmt: skip
        self.shortcut = nn.Identity() if width == out else nn.Conv2d(width, out, 1)

    def forward(self, x: Tensor) -> Tensor:
        summed: Tensor = self.shortcut(x) + self.layers(x)
        return summed


class _SelfAttention(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm, self.attention = _norm(width), Attention(width, 1)

    def forward(self, x: Tensor) -> Tensor:
        rows = self.norm(x).flatten(2).mT
        return x + self.attention(rows).mT.reshape(x.shape)


class _Upsample(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(width, width, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        larger: Tensor = self.conv(F.interpolate(x, scale_factor=2, mode="nearest"))
        return larger
