"""The encoder of MAGVIT-v2."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from fewtokens.tokenizers.blocks.causal_conv import Cache, CausalConv3d, Chain, check_counts
from fewtokens.tokenizers.blocks.levels import level_strides, residual_blocks
from fewtokens.tokenizers.blocks.residual import ConvNorm
from fewtokens.tokenizers.blocks.streaming import StreamingEncoder


class Magvit2(StreamingEncoder):
    """MAGVIT-v2 (arXiv 2310.05737) in the form of Open-MAGVIT2 (arXiv 2409.04410): causal 3x3x3 convolutions.

    Time is padded with zeros, as there. Groups of channels are normalized over a frame, not over the clip, so that no
    cell depends on later frames.

    Args:
        channels: of a token: the bits of `lfq`.
        width: channels of the first level.
        mult: factor of the channels of each level.
        strides: frames, rows and columns by which the convolution after each level but the last reduces.
        depth: residual blocks of a level, and after the last.
    """

    causal = True
    first_frame = True

    def __init__(
        self,
        channels: int = 18,
        *,
        width: int = 128,
        mult: Sequence[int] = (1, 2, 2, 4),
        strides: Sequence[Sequence[int]] = ((1, 2, 2), (2, 2, 2), (2, 2, 2)),
        depth: int = 4,
    ) -> None:
        super().__init__()
        check_counts(channels=channels, width=width, depth=depth)
        triples, self.stride = level_strides(strides, len(mult))
        self.channels, self.width, self.mult, self.strides, self.depth = channels, width, tuple(mult), strides, depth
        self.layers = Chain(CausalConv3d(3, width, fill="zeros"))
        dim = width
        for i, factor in enumerate(mult):
            self.layers.extend(residual_blocks(dim, width * factor, depth, norm="frame", fill="zeros"))
            dim = width * factor
            if i < len(triples):
                self.layers.append(CausalConv3d(dim, dim, stride=triples[i], fill="zeros"))
        self.layers.extend(residual_blocks(dim, dim, depth, norm="frame", fill="zeros"))
        self.layers.extend([ConvNorm(dim, "frame"), CausalConv3d(dim, channels, (1, 1, 1))])

    @property
    def dim(self) -> int:
        return self.channels

    def encode(self, x: Tensor, cache: Cache | None = None) -> Tensor:
        encoded: Tensor = self.layers(x, cache)
        return encoded
