"""The decoder of VidTok."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from fewtokens.tokenizers.blocks.blend import BlendedUp
from fewtokens.tokenizers.blocks.causal_conv import CausalConv3d, Chain, Repeat, check_counts
from fewtokens.tokenizers.blocks.cell_attention import CellAttention
from fewtokens.tokenizers.blocks.residual import ConvNorm, ResBlock
from fewtokens.tokenizers.blocks.vidtok_levels import BOTH, level_blocks, temporal_steps
from fewtokens.tokenizers.parts import GridDecoder


class VidTok(GridDecoder):
    """VidTok (arXiv 2412.13061): the mirror image of the encoder `vidtok`.

    That of the causal model is not causal, as in the released one: interpolation in time looks one row of cells ahead.
    So it decodes whole videos or windows.

    Args:
        dim: channels of a token.
        width, mult, stride: as in the encoder.
        depth: of the encoder; a level has one more pair of residual blocks.
        first_frame: whether the first row of cells becomes one frame, as the causal encoder needs it.
    """

    def __init__(
        self,
        dim: int = 6,
        *,
        width: int = 128,
        mult: Sequence[int] = (1, 2, 4, 4),
        stride: Sequence[int] = (4, 8, 8),
        depth: int = 2,
        first_frame: bool = True,
    ) -> None:
        super().__init__()
        check_counts(dim=dim, width=width, depth=depth)
        in_time = temporal_steps(stride, len(mult) - 1)
        self.dim, self.width, self.mult, self.depth = dim, width, tuple(mult), depth
        self.stride, self.first_frame, causal = (stride[0], stride[1], stride[2]), first_frame, first_frame
        wide = width * mult[-1]
        self.layers = Chain(
            CausalConv3d(dim, wide, causal=causal),
            ResBlock(wide, wide, BOTH, causal=causal),
            CellAttention(wide),
            ResBlock(wide, wide, BOTH, causal=causal),
        )
        frames = 1
        for i, factor in enumerate(reversed(mult)):
            self.layers.extend(level_blocks(wide, width * factor, depth + 1, causal=causal))
            wide = width * factor
            if i < len(mult) - 1:
                self.layers.extend([Repeat((1, 2, 2)), CausalConv3d(wide, wide, (1, 3, 3))])
            if i in in_time:
                self.layers.append(BlendedUp(wide, first=frames, causal=causal))
                frames *= 2
        self.layers.extend([ConvNorm(wide), CausalConv3d(wide, 3, causal=causal)])

    def pixels_of(self, latents: Tensor) -> Tensor:
        frames = self.layers(latents)
        return frames[:, :, self.stride[0] - 1 :] if self.first_frame else frames
