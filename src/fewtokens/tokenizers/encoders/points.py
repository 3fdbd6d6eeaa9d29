"""Encoder of sets of points to few tokens."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from fewtokens.core.grid import Grid
from fewtokens.tokenizers.blocks.transformer import Block
from fewtokens.tokenizers.parts import VideoEncoder


class Points(VideoEncoder):
    """A transformer over points and learned tokens, of which the tokens are kept; the order of points does not matter.

    The encoder of VAT (arXiv 2412.02202). Points are [B,N,3] in -1..1; there is one row of tokens for any number of
    points.

    Args:
        width: number of channels of a token.
        tokens: number of tokens.
        depth, heads: blocks and attention heads.
        frequencies: sines and cosines per coordinate, of frequencies pi, 2 pi, 4 pi and so on.
    """

    def __init__(
        self, width: int = 512, *, tokens: int = 256, depth: int = 8, heads: int = 8, frequencies: int = 8
    ) -> None:
        super().__init__()
        self.width, self.tokens, self.depth, self.heads, self.frequencies = width, tokens, depth, heads, frequencies
        self.stride = (1, 1, 1)
        self.embed = nn.Linear(3 + 6 * frequencies, width)
        self.queries = nn.Parameter(0.02 * torch.randn(tokens, width))
        self.blocks = nn.ModuleList(Block(width, heads, "full", "vit") for _ in range(depth))
        self.norm = nn.LayerNorm(width, 1e-6)

    @property
    def dim(self) -> int:
        return self.width

    def cells(self, frames: int, height: int, width: int) -> tuple[int, int, int]:
        return 1, 1, self.tokens

    def pixels(self, grid: Grid) -> tuple[int, int, int]:
        return 1, 1, self.tokens

    def latents(self, x: Tensor) -> Tensor:
        """Encodes points [B,N,3] to [B,C,1,1,tokens]."""
        points = self.embed(fourier(x, self.frequencies))
        y = torch.cat([self.queries.expand(len(x), -1, -1), points], 1)[:, None, None]
        for block in self.blocks:
            y, _ = block(y, None)
        latents: Tensor = self.norm(y[:, :, :, : self.tokens]).movedim(-1, 1)
        return latents


def fourier(x: Tensor, frequencies: int) -> Tensor:
    """Coordinates [...,D], and their sines and cosines, [...,D+2*D*frequencies]."""
    rates = math.pi * 2.0 ** torch.arange(frequencies, device=x.device, dtype=x.dtype)
    angles = (x[..., None] * rates).flatten(-2)
    return torch.cat([x, angles.sin(), angles.cos()], -1)
