"""A convolutional decoder of frames that also reads global words."""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from fewtokens.core.tokens import Tokens
from fewtokens.tokenizers.decoders.conv2d import Conv2d
from fewtokens.tokenizers.parts import Decoder


class WordConv2d(Decoder):
    """The decoder of V2L (arXiv 2403.07874): cells attend to the global words, then `conv2d`.

    Tokens are one per cell, followed by the words.

    Args:
        dim: channels of a token.
        width, mult, depth: of the convolutions, see `conv2d`.
    """

    causal = True
    full_grid = False

    def __init__(self, dim: int = 768, *, width: int = 128, mult: Sequence[int] = (1, 2, 2, 4), depth: int = 2) -> None:
        super().__init__()
        self.dim, self.width, self.mult, self.depth = dim, width, tuple(mult), depth
        self.trunk = Conv2d(dim, width=width, mult=mult, depth=depth)
        self.stride = self.trunk.stride
        self.norm = nn.LayerNorm(dim)
        self.q, self.k, self.v, self.out = (nn.Linear(dim, dim) for _ in range(4))

    def forward(self, tokens: Tokens) -> Tensor:
        grid = tokens.grid
        cells, words = tokens.features[:, : grid.cells], tokens.features[:, grid.cells :]
        q, k, v = self.q(self.norm(cells)), self.k(words), self.v(words)
        cells = cells + self.out(F.scaled_dot_product_attention(q, k, v))
        latents = cells.transpose(1, 2).unflatten(2, grid.shape)
        return self.trunk.pixels_of(latents).transpose(1, 2)
