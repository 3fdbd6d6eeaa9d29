"""The decoder of LARP: a transformer over tokens and one query per tubelet, then pixels."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from fewtokens.core.tokens import Tokens
from fewtokens.methods.learned.learned_queries import QueryBlock
from fewtokens.methods.ops.resample import check_counts
from fewtokens.tokenizers.blocks.sines import sines, sines_of_cells
from fewtokens.tokenizers.blocks.transformer import TubeletPixels, checked_stride, make_norm
from fewtokens.tokenizers.parts import Decoder


class Larp(Decoder):
    """Applies a transformer to tokens and to one query of each tubelet, and maps the queries to pixels.

    The decoder of LARP (arXiv 2410.21264), with the parameters of its code. Positions are fixed sines and cosines: of
    the index of a token, and of time, row and column of a tubelet. So any number of tokens makes frames of any size.

    Args:
        dim: channels of a token.
        width: channels of the transformer, a multiple of 4.
        stride: frames, rows and columns of a tubelet.
        num_layers: number of blocks, pre-norm with 4 * `width` hidden channels, without biases of queries, keys and
            values.
        heads: largest number of attention heads that divides `width` is used, up to this.
    """

    full_grid = False

    def __init__(
        self,
        dim: int = 16,
        *,
        width: int = 768,
        stride: Sequence[int] = (4, 8, 8),
        num_layers: int = 12,
        heads: int = 12,
    ) -> None:
        super().__init__()
        check_counts(width=width, num_layers=num_layers, heads=heads)
        if width % 4:
            raise ValueError(f"width must be a multiple of 4, got {width}")
        self.dim, self.width, self.num_layers, self.heads = dim, width, num_layers, heads
        self.stride = checked_stride(stride)
        self.embed = nn.Linear(dim, width)
        self.query = nn.Parameter(0.02 * torch.randn(width))
        self.blocks = nn.ModuleList(QueryBlock(width, heads, bias=False) for _ in range(num_layers))
        self.norm = make_norm(width, "vit")
        self.pixels_of_cells = TubeletPixels(width, self.stride, first_frame=False)

    def forward(self, tokens: Tokens) -> Tensor:
        T, H, W = tokens.grid.shape
        order = sines(tokens.N, self.width, device=tokens.device)
        cells = sines_of_cells(T, H, W, self.width, device=tokens.device).flatten(0, 2)
        x = self.embed(tokens.features) + order.to(self.query.dtype)
        queries = (self.query + cells.to(self.query.dtype)).expand(tokens.B, -1, -1)
        for block in self.blocks:
            x, queries = block(x, queries, tokens.mask, ordered=False)
        frames: Tensor = self.pixels_of_cells(self.norm(queries).unflatten(1, (T, H, W)))
        return frames.transpose(1, 2)
