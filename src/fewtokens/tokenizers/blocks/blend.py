"""Changes of the number of frames in VidTok (arXiv 2412.13061): a fixed rule and a convolution, blended."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fewtokens.tokenizers.blocks.causal_conv import Cache, CausalConv3d, with_past


class BlendedDown(nn.Module):
    """Halves the frames by the mean of three and by a convolution, mixed with one learned weight.

    Args:
        dim: channels.
        causal: whether a result depends on no later frame than its pair.
    """

    def __init__(self, dim: int, *, causal: bool = True) -> None:
        super().__init__()
        self.conv = CausalConv3d(dim, dim, stride=(2, 1, 1), first_frame=False, causal=causal)
        self.mix = nn.Parameter(torch.tensor([2.0]))
        self.causal = causal

    def forward(self, x: Tensor, cache: Cache | None = None) -> Tensor:
        padded = with_past(self, x, 1, 3, 2, cache) if self.causal else F.pad(x, (0, 0, 0, 0, 0, 1))
        mean = (padded[:, :, :-2:2] + padded[:, :, 1:-1:2] + padded[:, :, 2::2]) / 3
        return torch.lerp(self.conv(x, cache), mean, self.mix.sigmoid())


class BlendedUp(nn.Module):
    """Doubles the frames by interpolation and by a convolution of the interpolated, mixed with one learned weight.

    A causal network interpolates linearly, as the authors do: the second frame of a pair is mixed with the next cell,
    so decoding looks one row of cells ahead. The first `first` frames are interpolated among themselves.

    Args:
        dim: channels.
        first: frames before this layer that come from the first row of cells.
        causal: whether the network is causal; if not, frames are repeated.
    """

    def __init__(self, dim: int, *, first: int = 1, causal: bool = True) -> None:
        super().__init__()
        self.conv = CausalConv3d(dim, dim, causal=causal)
        self.mix = nn.Parameter(torch.tensor([2.0]))
        self.first, self.causal = first, causal

    def forward(self, x: Tensor, cache: Cache | None = None) -> Tensor:
        if self.causal:
            parts = x.split([self.first, x.shape[2] - self.first], 2)
            double = torch.cat(
                [F.interpolate(part, scale_factor=(2, 1, 1), mode="trilinear") for part in parts if part.shape[2]], 2
            )
        else:
            double = x.repeat_interleave(2, 2)
        return torch.lerp(self.conv(double, cache), double, self.mix.sigmoid())
