"""A small causal decoder of 3-D convolutions."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from fewtokens.tokenizers.blocks.causal_conv import Cache, CausalConv3d, Chain, DepthToSpace, check_counts
from fewtokens.tokenizers.blocks.residual import ConvNorm, ResBlock
from fewtokens.tokenizers.blocks.small_conv import PATCH, RES_KERNELS, from_blocks, small_strides
from fewtokens.tokenizers.blocks.streaming import StreamingDecoder


class CausalConv(StreamingDecoder):
    """The mirror image of the encoder `causal_conv`; a frame depends on no later cell.

    Args:
        dim: channels of a token.
        width: channels of the last level; the others have twice as many.
        stride: frames, rows and columns of a cell, as in the encoder.
        depth: residual blocks of a level.
    """

    causal = True
    first_frame = True

    def __init__(self, dim: int = 64, *, width: int = 32, stride: Sequence[int] = (4, 8, 8), depth: int = 1) -> None:
        super().__init__()
        check_counts(dim=dim, width=width, depth=depth)
        strides = small_strides(stride)
        self.dim, self.width, self.stride, self.depth = dim, width, (stride[0], stride[1], stride[2]), depth
        wide = 2 * width
        self.layers = Chain(CausalConv3d(dim, wide, (1, 1, 1)))
        for i, up in reversed(list(enumerate(strides))):
            self.layers.extend(ResBlock(wide, wide, RES_KERNELS, scale=0.1) for _ in range(depth))
            self.layers.append(DepthToSpace(wide, width if i == 0 else wide, up))
        self.layers.extend(ResBlock(width, width, RES_KERNELS, scale=0.1) for _ in range(depth))
        self.layers.extend([ConvNorm(width), CausalConv3d(width, 3 * PATCH**2)])

    def decode(self, latents: Tensor, cache: Cache | None = None) -> Tensor:
        blocks: Tensor = self.layers(latents, cache)
        return from_blocks(blocks)
