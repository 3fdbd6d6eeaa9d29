"""A small causal encoder of 3-D convolutions."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from fewtokens.tokenizers.blocks.causal_conv import Cache, CausalConv3d, Chain, check_counts
from fewtokens.tokenizers.blocks.residual import ConvNorm, ResBlock
from fewtokens.tokenizers.blocks.small_conv import PATCH, RES_KERNELS, small_strides, to_blocks
from fewtokens.tokenizers.blocks.streaming import StreamingEncoder


class CausalConv(StreamingEncoder):
    """The small causal encoder: pixels in blocks of 4x4, then convolutions in space and time that halve the rest.

    It accepts 1 + k * stride[0] frames; the first row of cells depends on the first frame alone. About 0.2 M parameters
    at a width of 32, and 0.8 M in the decoder.

    Args:
        width: channels of the first level; the tokens have twice as many.
        stride: frames (1, 2, 4 or 8), rows and columns (4, 8, 16 or 32, equal) of a cell.
        depth: residual blocks of a level.
    """

    causal = True
    first_frame = True

    def __init__(self, width: int = 32, *, stride: Sequence[int] = (4, 8, 8), depth: int = 1) -> None:
        super().__init__()
        check_counts(width=width, depth=depth)
        strides = small_strides(stride)
        self.width, self.stride, self.depth = width, (stride[0], stride[1], stride[2]), depth
        self.layers = Chain(CausalConv3d(3 * PATCH**2, width))
        dim = width
        for down in strides:
            self.layers.extend(ResBlock(dim, dim, RES_KERNELS, scale=0.1) for _ in range(depth))
            kernel = (3, 3, 3) if down[1] > 1 else (3, 1, 1)
            self.layers.append(CausalConv3d(dim, 2 * width, kernel, stride=down))
            dim = 2 * width
        self.layers.extend(ResBlock(dim, dim, RES_KERNELS, scale=0.1) for _ in range(depth))
        self.layers.append(ConvNorm(dim))

    @property
    def dim(self) -> int:
        return 2 * self.width

    def encode(self, x: Tensor, cache: Cache | None = None) -> Tensor:
        blocks = to_blocks(x)
        encoded: Tensor = self.layers(blocks, cache)
        return encoded
