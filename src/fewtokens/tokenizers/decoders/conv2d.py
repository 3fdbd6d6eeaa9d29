"""The convolutional decoder of image tokenizers, for each frame."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from fewtokens.tokenizers.blocks.causal_conv import Cache, CausalConv3d, Chain, Repeat, check_counts
from fewtokens.tokenizers.blocks.image_levels import FRAME, frame_blocks, frame_middle
from fewtokens.tokenizers.blocks.residual import ConvNorm
from fewtokens.tokenizers.blocks.streaming import StreamingDecoder


class Conv2d(StreamingDecoder):
    """The decoder of VQGAN (arXiv 2012.09841): the mirror image of the encoder `conv2d`.

    Args:
        dim: channels of a token.
        width, mult: as in the encoder.
        depth: of the encoder; a level has one residual block more.
    """

    causal = True

    def __init__(
        self, dim: int = 256, *, width: int = 128, mult: Sequence[int] = (1, 1, 2, 2, 4), depth: int = 2
    ) -> None:
        super().__init__()
        check_counts(dim=dim, width=width, depth=depth, levels=len(mult))
        self.dim, self.width, self.mult, self.depth = dim, width, tuple(mult), depth
        last = len(mult) - 1
        self.stride = (1, 2**last, 2**last)
        wide = width * mult[-1]
        self.layers = Chain(CausalConv3d(dim, wide, FRAME), *frame_middle(wide))
        for i, factor in enumerate(reversed(mult)):
            self.layers.extend(frame_blocks(wide, width * factor, depth + 1, attention=i == 0))
            wide = width * factor
            if i < last:
                self.layers.extend([Repeat((1, 2, 2)), CausalConv3d(wide, wide, FRAME)])
        self.layers.extend([ConvNorm(wide, "frame"), CausalConv3d(wide, 3, FRAME)])

    def decode(self, latents: Tensor, cache: Cache | None = None) -> Tensor:
        frames: Tensor = self.layers(latents, cache)
        return frames
