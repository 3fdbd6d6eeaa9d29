"""A convolutional decoder of frames with several rates."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from fewtokens.core.tokens import Tokens
from fewtokens.tokenizers.blocks.causal_conv import CausalConv3d, Chain, Repeat, check_counts
from fewtokens.tokenizers.blocks.image_levels import FRAME, frame_blocks, frame_middle
from fewtokens.tokenizers.blocks.residual import ConvNorm
from fewtokens.tokenizers.parts import Decoder


class NestedConv2d(Decoder):
    """The nested decoder of CAT (arXiv 2501.03120), the mirror image of the encoder `nested_conv2d`.

    The number of tokens of a video determines its rate: a quarter for each inner level.

    Args:
        dim: channels of a token.
        width, mult, inner: as in the encoder.
        depth: of the encoder; a level has one residual block more.
    """

    causal = True
    full_grid = False

    def __init__(
        self, dim: int = 16, *, width: int = 128, mult: Sequence[int] = (1, 2, 4, 4), inner: int = 2, depth: int = 2
    ) -> None:
        super().__init__()
        check_counts(dim=dim, width=width, inner=inner, depth=depth, levels=len(mult))
        self.dim, self.width, self.mult, self.inner, self.depth = dim, width, tuple(mult), inner, depth
        side = 2 ** (len(mult) - 1)
        self.stride = (1, side, side)
        wide = width * mult[-1]
        self.head = Chain(CausalConv3d(dim, wide, FRAME), *frame_middle(wide))
        self.levels = nn.ModuleList(
            Chain(*frame_blocks(wide, wide, depth + 1), Repeat((1, 2, 2)), CausalConv3d(wide, wide, FRAME))
            for _ in range(inner)
        )
        self.outer = Chain()
        for i, factor in reversed(list(enumerate(mult))):
            self.outer.extend(frame_blocks(wide, width * factor, depth + 1))
            wide = width * factor
            if i > 0:
                self.outer.extend([Repeat((1, 2, 2)), CausalConv3d(wide, wide, FRAME)])
        self.outer.extend([ConvNorm(wide, "frame"), CausalConv3d(wide, 3, FRAME)])

    def forward(self, tokens: Tokens) -> Tensor:
        grid, parts, order = tokens.grid, [], []
        for rate in range(self.inner + 1):
            index = (tokens.count * 4**rate == grid.cells).nonzero()[:, 0]
            if len(index):
                shape = (grid.T, grid.H // 2**rate, grid.W // 2**rate)
                cells = tokens.features[index, : grid.cells // 4**rate].transpose(1, 2).unflatten(2, shape)
                parts.append(self.pixels_at(cells, rate))
                order.append(index)
        if sum(map(len, order)) < tokens.B:
            raise ValueError(f"{self.name} reads {grid.cells} tokens, or a quarter of them for each of its other rates")
        return torch.cat(parts)[torch.cat(order).argsort()].transpose(1, 2)

    def pixels_at(self, latents: Tensor, rate: int) -> Tensor:
        """Decodes the cells [B,C,T,H',W'] of a rate to frames [B,3,T,H,W]."""
        x = self.head(latents)
        for level in reversed(self.levels[:rate]):
            x = level(x)
        frames: Tensor = self.outer(x)
        return frames
