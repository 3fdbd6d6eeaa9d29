"""Decodes each pixel of a segment from the vector of the segment and its position within the box."""

from __future__ import annotations

from torch import Tensor, nn

from fewtokens.core.tokens import Tokens
from fewtokens.methods.ops.resample import feed_forward
from fewtokens.tokenizers.blocks.segments import relative_sines, spread
from fewtokens.tokenizers.parts import Decoder


class Segments(Decoder):
    """An MLP over the pixels of each segment: every pixel of the frame is that of one segment, so all are decoded once.

    It reads the assignment of pixels to tokens, from which boxes follow. A dropped pixel is decoded from zeros.

    Args:
        dim: channels of a token.
        width: channels of a pixel, a multiple of 4.
        depth: number of residual MLPs with 4 * `width` hidden channels.

    Raises:
        ValueError: an argument is out of range.
    """

    stride = (1, 1, 1)

    def __init__(self, dim: int = 256, *, width: int = 256, depth: int = 4) -> None:
        super().__init__()
        if min(dim, width, depth) < 1 or width % 4:
            raise ValueError(f"dim, width and depth must be at least 1, and width a multiple of 4, got {width}")
        self.dim, self.width, self.depth = dim, width, depth
        self.embed = nn.Linear(dim, width)
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.LayerNorm(width, 1e-6), feed_forward(width)) for _ in range(depth)
        )  # fmt: skip
        self.head = nn.Sequential(nn.LayerNorm(width, 1e-6), nn.Linear(width, 3))

    def forward(self, tokens: Tokens) -> Tensor:
        x = spread(self.embed(tokens.features), tokens.assignment)
        x = x + relative_sines(tokens.assignment, tokens.grid, tokens.N, self.width).to(x.dtype)
        for block in self.blocks:
            x = x + block(x)
        pixels: Tensor = self.head(x)
        return pixels.unflatten(1, tokens.grid.shape).movedim(-1, 2)
