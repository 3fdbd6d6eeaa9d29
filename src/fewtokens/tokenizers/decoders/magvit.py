"""The decoder of MAGVIT."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from fewtokens.tokenizers.blocks.causal_conv import CausalConv3d, Chain, Repeat, check_counts
from fewtokens.tokenizers.blocks.levels import level_strides, residual_blocks
from fewtokens.tokenizers.blocks.residual import ConvNorm
from fewtokens.tokenizers.parts import GridDecoder


class Magvit(GridDecoder):
    """The 3-D VQ network of MAGVIT (arXiv 2212.05199): the mirror image of the encoder `magvit`, cells repeated.

    Args:
        dim: channels of a token.
        width, mult, strides, depth: as in the encoder.
    """

    def __init__(
        self,
        dim: int = 256,
        *,
        width: int = 128,
        mult: Sequence[int] = (1, 2, 2, 4),
        strides: Sequence[Sequence[int]] = ((1, 2, 2), (2, 2, 2), (2, 2, 2)),
        depth: int = 2,
    ) -> None:
        super().__init__()
        check_counts(dim=dim, width=width, depth=depth)
        triples, self.stride = level_strides(strides, len(mult))
        self.dim, self.width, self.mult, self.strides, self.depth = dim, width, tuple(mult), strides, depth
        wide = width * mult[-1]
        self.layers = Chain(
            CausalConv3d(dim, wide, causal=False), *residual_blocks(wide, wide, depth, norm="clip", causal=False)
        )
        for i, factor in reversed(list(enumerate(mult))):
            self.layers.extend(residual_blocks(wide, width * factor, depth, norm="clip", causal=False))
            wide = width * factor
            if i > 0:
                self.layers.extend([Repeat(triples[i - 1]), CausalConv3d(wide, wide, causal=False)])
        self.layers.extend([ConvNorm(wide, "clip"), CausalConv3d(wide, 3, causal=False)])

    def pixels_of(self, latents: Tensor) -> Tensor:
        frames: Tensor = self.layers(latents)
        return frames
