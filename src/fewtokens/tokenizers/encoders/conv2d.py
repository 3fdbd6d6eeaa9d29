"""The convolutional encoder of image tokenizers, for each frame."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from fewtokens.tokenizers.blocks.causal_conv import Cache, CausalConv3d, Chain, check_counts
from fewtokens.tokenizers.blocks.image_levels import FRAME, frame_blocks, frame_middle
from fewtokens.tokenizers.blocks.residual import ConvNorm
from fewtokens.tokenizers.blocks.streaming import StreamingEncoder


class Conv2d(StreamingEncoder):
    """The encoder of VQGAN (arXiv 2012.09841), as in LlamaGen and FQGAN: each frame separately.

    Args:
        channels: of a token.
        width: channels of the first level.
        mult: factor of the channels of each level; a cell has 2 ** (levels - 1) rows and columns.
        depth: residual blocks of a level; in the last, attention within the frame follows each.
    """

    causal = True

    def __init__(
        self, channels: int = 256, *, width: int = 128, mult: Sequence[int] = (1, 1, 2, 2, 4), depth: int = 2
    ) -> None:
        super().__init__()
        check_counts(channels=channels, width=width, depth=depth, levels=len(mult))
        self.channels, self.width, self.mult, self.depth = channels, width, tuple(mult), depth
        last = len(mult) - 1
        self.stride = (1, 2**last, 2**last)
        self.layers = Chain(CausalConv3d(3, width, FRAME))
        dim = width
        for i, factor in enumerate(mult):
            self.layers.extend(frame_blocks(dim, width * factor, depth, attention=i == last))
            dim = width * factor
            if i < last:
                self.layers.append(CausalConv3d(dim, dim, FRAME, stride=(1, 2, 2)))
        self.layers.extend(frame_middle(dim))
        self.layers.extend([ConvNorm(dim, "frame"), CausalConv3d(dim, channels, FRAME)])

    @property
    def dim(self) -> int:
        return self.channels

    def encode(self, x: Tensor, cache: Cache | None = None) -> Tensor:
        encoded: Tensor = self.layers(x, cache)
        return encoded
