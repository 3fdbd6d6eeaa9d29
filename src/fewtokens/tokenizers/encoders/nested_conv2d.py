"""A convolutional encoder of frames with several rates: the same layers, up to different depths."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from fewtokens.tokenizers.blocks.causal_conv import CausalConv3d, Chain, check_counts
from fewtokens.tokenizers.blocks.image_levels import FRAME, frame_blocks, frame_middle
from fewtokens.tokenizers.blocks.residual import ConvNorm
from fewtokens.tokenizers.parts import VideoEncoder


class NestedConv2d(VideoEncoder):
    """The nested encoder of CAT (arXiv 2501.03120): outer levels, then inner ones of which a rate runs the first.

    Rate 0 runs no inner level and has the smallest cells; each inner level doubles rows and columns of a cell. All
    rates share the outer levels, the middle and the head.

    Args:
        channels: of a token: twice those of the latent for `gaussian`.
        width: channels of the first level.
        mult: factor of the channels of each outer level; a cell of rate 0 has 2 ** (levels - 1) rows and columns.
        inner: inner levels, all as wide as the last outer one.
        depth: residual blocks of a level.
    """

    causal = True

    def __init__(
        self,
        channels: int = 32,
        *,
        width: int = 128,
        mult: Sequence[int] = (1, 2, 4, 4),
        inner: int = 2,
        depth: int = 2,
    ) -> None:
        super().__init__()
        check_counts(channels=channels, width=width, inner=inner, depth=depth, levels=len(mult))
        self.channels, self.width, self.mult, self.inner, self.depth = channels, width, tuple(mult), inner, depth
        side = 2 ** (len(mult) - 1)
        self.stride = (1, side, side)
        self.outer = Chain(CausalConv3d(3, width, FRAME))
        dim = width
        for i, factor in enumerate(mult):
            self.outer.extend(frame_blocks(dim, width * factor, depth))
            dim = width * factor
            if i < len(mult) - 1:
                self.outer.append(CausalConv3d(dim, dim, FRAME, stride=(1, 2, 2)))
        self.levels = nn.ModuleList(
            Chain(CausalConv3d(dim, dim, FRAME, stride=(1, 2, 2)), *frame_blocks(dim, dim, depth)) for _ in range(inner)
        )
        self.head = Chain(*frame_middle(dim), ConvNorm(dim, "frame"), CausalConv3d(dim, channels, FRAME))

    @property
    def dim(self) -> int:
        return self.channels

    def padded(self, frames: int, height: int, width: int) -> tuple[int, int, int]:
        side = self.stride[1] * 2**self.inner
        return frames, -(-height // side) * side, -(-width // side) * side

    def latents(self, x: Tensor) -> Tensor:
        return self.latents_at(x, 0)

    def latents_at(self, x: Tensor, rate: int) -> Tensor:
        """Encodes frames [B,3,T,H,W] in -1..1 to the cells of a rate, [B,C,T,H',W']."""
        x = self.outer(x)
        for level in self.levels[:rate]:
            x = level(x)
        encoded: Tensor = self.head(x)
        return encoded
