"""The encoder of MAGVIT."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from fewtokens.tokenizers.blocks.causal_conv import Cache, CausalConv3d, Chain, Three, check_counts
from fewtokens.tokenizers.blocks.levels import level_strides, residual_blocks
from fewtokens.tokenizers.blocks.pooling import mean_pool3d
from fewtokens.tokenizers.blocks.residual import ConvNorm
from fewtokens.tokenizers.parts import VideoEncoder


class Magvit(VideoEncoder):
    """The 3-D VQ network of MAGVIT (arXiv 2212.05199): 3x3x3 convolutions and mean pooling, not causal.

    Args:
        channels: of a token.
        width: channels of the first level.
        mult: factor of the channels of each level.
        strides: frames, rows and columns that are averaged after each level but the last.
        depth: residual blocks of a level, and after the last.
    """

    def __init__(
        self,
        channels: int = 256,
        *,
        width: int = 128,
        mult: Sequence[int] = (1, 2, 2, 4),
        strides: Sequence[Sequence[int]] = ((1, 2, 2), (2, 2, 2), (2, 2, 2)),
        depth: int = 2,
    ) -> None:
        super().__init__()
        check_counts(channels=channels, width=width, depth=depth)
        triples, self.stride = level_strides(strides, len(mult))
        self.channels, self.width, self.mult, self.strides, self.depth = channels, width, tuple(mult), strides, depth
        self.layers = Chain(CausalConv3d(3, width, causal=False))
        dim = width
        for i, factor in enumerate(mult):
            self.layers.extend(residual_blocks(dim, width * factor, depth, norm="clip", causal=False))
            dim = width * factor
            if i < len(triples):
                self.layers.append(MeanPool(triples[i]))
        self.layers.extend(residual_blocks(dim, dim, depth, norm="clip", causal=False))
        self.layers.extend([ConvNorm(dim, "clip"), CausalConv3d(dim, channels, (1, 1, 1))])

    @property
    def dim(self) -> int:
        return self.channels

    def latents(self, x: Tensor) -> Tensor:
        encoded: Tensor = self.layers(x)
        return encoded


class MeanPool(nn.Module):
    """The mean over blocks of frames, rows and columns."""

    def __init__(self, size: Three) -> None:
        super().__init__()
        self.size = size

    def forward(self, x: Tensor, cache: Cache | None = None) -> Tensor:
        return mean_pool3d(x, self.size)
