"""The convolutional decoder of VQGAN over the features of patches."""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor

from fewtokens.core.tokens import Tokens
from fewtokens.tokenizers.blocks.conv_up import ConvUp as Network
from fewtokens.tokenizers.parts import GridDecoder


class ConvUp(GridDecoder):
    """Decodes each frame by convolutions that double it several times (VQGAN, arXiv 2012.09841).

    Args:
        dim: number of channels of a token.
        stride: 1, and the height and width of a cell in pixels.
        widths: channels of the levels, from the smallest to the largest image; 2^(number - 1) pixels are the side of a
            patch. If that of a cell differs, features are resized (bilinear), and pixels past the edge are cropped.
        blocks: residual blocks of a level.
        channels: number of first channels of a token that are read; 0 for all.
    """

    causal = True

    def __init__(
        self,
        dim: int = 384,
        *,
        stride: Sequence[int] = (1, 16, 16),
        widths: Sequence[int] = (512, 256, 256, 128, 128),
        blocks: int = 3,
        channels: int = 0,
    ) -> None:
        super().__init__()
        if len(stride) != 3 or stride[0] != 1 or min(stride) < 1:
            raise ValueError(f"stride must be 1 frame and the height and width of a cell, got {tuple(stride)}")
        if not 0 <= channels <= dim:
            raise ValueError(f"channels must be in 1..{dim}, or 0 for all, got {channels}")
        self.dim, self.stride, self.channels = dim, (1, stride[1], stride[2]), channels
        self.widths, self.blocks = tuple(widths), blocks
        self.patch = 2 ** (len(widths) - 1)
        self.to_pixels = Network(channels or dim, widths, blocks)

    def pixels_of(self, latents: Tensor) -> Tensor:
        x = latents[:, : self.channels or self.dim].transpose(1, 2).flatten(0, 1)
        height, width = x.shape[2] * self.stride[1], x.shape[3] * self.stride[2]
        size = (-(-height // self.patch), -(-width // self.patch))
        if size != x.shape[2:]:
            x = F.interpolate(x, size, mode="bilinear", align_corners=False)
        images = self.to_pixels(x)[..., :height, :width]
        return images.unflatten(0, (len(latents), -1)).transpose(1, 2)

    def step(self, tokens: Tokens, state: None = None) -> tuple[Tensor, None]:
        return self(tokens), None
