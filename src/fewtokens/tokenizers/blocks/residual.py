"""Normalization and residual blocks of convolutional encoders and decoders of videos."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fewtokens.tokenizers.blocks.causal_conv import Cache, CausalConv3d, Chain, Kernel, convolution

NormKind = Literal["channel", "frame", "clip"]


class ConvNorm(nn.Module):
    """Normalizes features [B,C,T,H,W]; videos never share statistics.

    Args:
        dim: channels C.
        kind: what shares mean and variance: "channel", the channels of a cell (layer normalization); "frame", a group
            of channels of all cells of a frame; "clip", of all cells, which is not causal.
        groups: most groups of channels of "frame" and "clip"; a group has at least 4 channels.
        act: whether SiLU follows.
        affine: whether a learned scale and shift of each channel follow ("frame" and "clip").
    """

    def __init__(
        self, dim: int, kind: NormKind = "channel", *, groups: int = 32, act: bool = True, affine: bool = True
    ) -> None:
        super().__init__()
        self.kind, self.act = kind, act
        groups = min(groups, max(1, dim // 4))
        if kind != "channel" and dim % groups:
            raise ValueError(f"channels must be a multiple of {groups} groups, got {dim}; use a width that is")
        self.norm = nn.LayerNorm(dim, 1e-6) if kind == "channel" else nn.GroupNorm(groups, dim, 1e-6, affine)

    def forward(self, x: Tensor, cache: Cache | None = None) -> Tensor:
        if self.kind == "channel":
            x = self.norm(x.movedim(1, -1)).movedim(-1, 1)
        elif self.kind == "frame":
            x = self.norm(x.transpose(1, 2).flatten(0, 1)).unflatten(0, (x.shape[0], -1)).transpose(1, 2)
        else:
            x = self.norm(x)
        return F.silu(x) if self.act else x


class ResBlock(nn.Module):
    """Adds to its input what a chain of normalizations and convolutions computes from it.

    Args:
        dim, out: channels of input and output; if they differ, a 1x1x1 convolution leads from one to the other.
        kernels: of each convolution, see `Kernel`.
        norm, groups: see `ConvNorm`.
        scale: factor of the initial weights of the last convolution; a small one begins near the identity.
        options: of the convolutions, see `CausalConv3d`.
    """

    def __init__(
        self,
        dim: int,
        out: int,
        kernels: Sequence[Kernel],
        *,
        norm: NormKind = "channel",
        groups: int = 32,
        scale: float = 1.0,
        **options: Any,
    ) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for i, kernel in enumerate(kernels):
            width = dim if i == 0 else out
            layers += [ConvNorm(width, norm, groups=groups), convolution(width, out, kernel, **options)]
        self.layers = Chain(*layers)
        self.shortcut = CausalConv3d(dim, out, (1, 1, 1), **options) if dim != out else None
        if scale != 1:
            with torch.no_grad():
                for parameter in layers[-1].parameters():
                    parameter.mul_(scale)

    def forward(self, x: Tensor, cache: Cache | None = None) -> Tensor:
        skip = x if self.shortcut is None else self.shortcut(x, cache)
        # In this order, the sum has the memory format of the layers, which need not copy it again.
        summed: Tensor = self.layers(x, cache) + skip
        return summed
