"""The encoder of VidTok."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fewtokens.tokenizers.blocks.blend import BlendedDown
from fewtokens.tokenizers.blocks.causal_conv import Cache, CausalConv3d, Chain, check_counts
from fewtokens.tokenizers.blocks.cell_attention import CellAttention
from fewtokens.tokenizers.blocks.residual import ConvNorm, ResBlock
from fewtokens.tokenizers.blocks.streaming import StreamingEncoder
from fewtokens.tokenizers.blocks.vidtok_levels import BOTH, level_blocks, temporal_steps


class VidTok(StreamingEncoder):
    """VidTok (arXiv 2412.13061): residual blocks in space and in time in turn, normalized over channels.

    A causal one repeats the first frame stride[0] - 1 times in front, so that the first row of cells depends on the
    first frame alone, and accepts 1 + k * stride[0] frames; a non-causal one, k * stride[0].

    Args:
        channels: of a token: 6 for FSQ with 262,144 codes; twice those of the latent for `gaussian`.
        width: channels of the first level.
        mult: factor of the channels of each level.
        stride: frames (1, 2, 4 or 8), rows and columns (2 ** (levels - 1)) of a cell.
        depth: pairs of residual blocks of a level.
        causal: whether no cell depends on later frames.
    """

    def __init__(
        self,
        channels: int = 6,
        *,
        width: int = 128,
        mult: Sequence[int] = (1, 2, 4, 4),
        stride: Sequence[int] = (4, 8, 8),
        depth: int = 2,
        causal: bool = True,
    ) -> None:
        super().__init__()
        check_counts(channels=channels, width=width, depth=depth)
        in_time = temporal_steps(stride, len(mult) - 1)
        self.channels, self.width, self.mult, self.depth = channels, width, tuple(mult), depth
        self.stride, self.causal, self.first_frame = (stride[0], stride[1], stride[2]), causal, causal
        self.layers = Chain(CausalConv3d(3, width, causal=causal))
        dim = width
        for i, factor in enumerate(mult):
            self.layers.extend(level_blocks(dim, width * factor, depth, causal=causal))
            dim = width * factor
            if i < len(mult) - 1:
                self.layers.append(CausalConv3d(dim, dim, (1, 3, 3), stride=(1, 2, 2)))
            if i in in_time:
                self.layers.append(BlendedDown(dim, causal=causal))
        self.layers.append(ResBlock(dim, dim, BOTH, causal=causal))
        self.layers.append(CellAttention(dim))
        self.layers.append(ResBlock(dim, dim, BOTH, causal=causal))
        self.layers.extend([ConvNorm(dim), CausalConv3d(dim, channels, causal=causal)])

    @property
    def dim(self) -> int:
        return self.channels

    def encode(self, x: Tensor, cache: Cache | None = None) -> Tensor:
        if self.causal and not cache:
            x = torch.cat([x[:, :, :1].expand(-1, -1, self.stride[0] - 1, -1, -1), x], 2)
        encoded: Tensor = self.layers(x, cache)
        return encoded
