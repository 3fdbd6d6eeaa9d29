"""The encoder of MAGVIT-v2."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from torch import Tensor

from fewtokens.tokenizers.blocks.causal_conv import Cache, CausalConv3d, Chain, check_counts
from fewtokens.tokenizers.blocks.levels import kernel_of, level_strides, residual_blocks
from fewtokens.tokenizers.blocks.residual import ConvNorm
from fewtokens.tokenizers.blocks.streaming import StreamingEncoder


class Magvit2(StreamingEncoder):
    """MAGVIT-v2 (arXiv 2310.05737) in the form of Open-MAGVIT2 (arXiv 2409.04410): causal 3x3x3 convolutions.

    Time is padded with zeros. If no stride has several frames, each frame is encoded separately by 3x3 convolutions, as
    in the tokenizers of images of Open-MAGVIT2.

    Args:
        channels: of a token: the bits of `lfq`.
        width: channels of the first level.
        mult: factor of the channels of each level.
        strides: frames, rows and columns by which the convolution after each level but the last reduces.
        depth: residual blocks of a level, and after the last.
        norm: whether groups of channels are normalized over a "frame", so that no cell depends on later frames, or over
            the "clip", as in the released tokenizer of videos, which then neither is causal nor encodes chunks.
    """

    def __init__(
        self,
        channels: int = 18,
        *,
        width: int = 128,
        mult: Sequence[int] = (1, 2, 2, 4),
        strides: Sequence[Sequence[int]] = ((1, 2, 2), (2, 2, 2), (2, 2, 2)),
        depth: int = 4,
        norm: Literal["frame", "clip"] = "frame",
    ) -> None:
        super().__init__()
        check_counts(channels=channels, width=width, depth=depth)
        triples, self.stride = level_strides(strides, len(mult))
        self.channels, self.width, self.mult, self.strides, self.depth = channels, width, tuple(mult), strides, depth
        self.norm, self.causal, self.first_frame = norm, norm == "frame", self.stride[0] > 1
        kernel = kernel_of(self.stride)
        self.layers = Chain(CausalConv3d(3, width, kernel, fill="zeros", bias=False))
        dim = width
        for i, factor in enumerate(mult):
            self.layers.extend(
                residual_blocks(dim, width * factor, depth, kernel=kernel, norm=norm, fill="zeros", bias=False)
            )
            dim = width * factor
            if i < len(triples):
                self.layers.append(CausalConv3d(dim, dim, kernel, stride=triples[i], fill="zeros", centered=True))
        self.layers.extend(residual_blocks(dim, dim, depth, kernel=kernel, norm=norm, fill="zeros", bias=False))
        self.layers.extend([ConvNorm(dim, norm), CausalConv3d(dim, channels, (1, 1, 1))])

    @property
    def dim(self) -> int:
        return self.channels

    def encode(self, x: Tensor, cache: Cache | None = None) -> Tensor:
        encoded: Tensor = self.layers(x, cache)
        return encoded
