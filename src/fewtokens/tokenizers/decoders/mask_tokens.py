"""A transformer over tokens and one mask token per cell: the decoder of 1-D tokenizers."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from fewtokens.core.tokens import Tokens
from fewtokens.tokenizers.blocks.transformer import (
    Block,
    LearnedPositions,
    TubeletPixels,
    checked_stride,
    grid_positions,
    make_norm,
    rotary_angles,
)
from fewtokens.tokenizers.parts import Decoder


class MaskTokens(Decoder):
    """Appends a mask token for each cell to the tokens, applies a transformer to both, and maps the cells to pixels.

    A decoder of 1-D tokenizers; those of TiTok and LARP with the parameters of their code are `titok` and `larp`.
    Tokens are a sequence, with a learned embedding of the index; the number of cells is that of the video, so any
    number of tokens makes frames of any size. In place of tokens that are missing, because the sequence ends before
    `num_tokens`, is a learned vector, as in the nested dropout of FlexTok (2502.13967).

    Args:
        dim: channels of a token.
        width: channels of the transformer.
        stride: frames, rows and columns of the tubelet of a cell.
        num_tokens: largest number of tokens.
        num_layers: number of blocks, pre-norm with 4 * `width` hidden channels.
        heads: attention heads; must divide `width`.
        positions: of the mask tokens: "sine", fixed sines and cosines of time, row and column in cells; or T, H and W
            of the grid of learned ones, which are resized to others.
        first_frame: whether the first row of cells is the first frame alone.
    """

    full_grid = False

    def __init__(
        self,
        dim: int = 384,
        *,
        width: int = 384,
        stride: Sequence[int] = (1, 16, 16),
        num_tokens: int = 256,
        num_layers: int = 12,
        heads: int = 6,
        positions: str | Sequence[int] = "sine",
        first_frame: bool = False,
    ) -> None:
        super().__init__()
        self.dim, self.width, self.num_tokens, self.num_layers = dim, width, num_tokens, num_layers
        self.heads, self.positions = heads, positions
        self.stride, self.first_frame = checked_stride(stride, first_frame), first_frame
        if num_tokens < 1 or num_layers < 1:
            raise ValueError(f"num_tokens and num_layers must be at least 1, got {num_tokens} and {num_layers}")
        if heads < 1 or width % heads:
            raise ValueError(f"heads must divide width, {width}, got {heads}")
        if isinstance(positions, str) and (positions != "sine" or width % 2):
            raise ValueError(f"positions must be sine, with an even width, or T, H and W of a grid, got {positions!r}")
        self.embed = nn.Linear(dim, width)
        # As long as the positions of cells, so that the cells distinguish tokens from the start.
        self.order = nn.Parameter(torch.randn(num_tokens, width))
        self.missing = nn.Parameter(0.02 * torch.randn(width))
        self.mask = nn.Parameter(0.02 * torch.randn(width))
        self.learned = None if isinstance(positions, str) else LearnedPositions(width, positions)
        self.blocks = nn.ModuleList(Block(width, heads, "full", "vit") for _ in range(num_layers))
        self.norm = make_norm(width, "vit")
        self.pixels_of_cells = TubeletPixels(width, self.stride, first_frame)

    def forward(self, tokens: Tokens) -> Tensor:
        if self.num_tokens < tokens.N:
            raise ValueError(f"{self.name} was built for {self.num_tokens} tokens, got {tokens.N}; set num_tokens")
        T, H, W = tokens.grid.shape
        sequence = torch.cat([self._sequence(tokens), self._masks(T, H, W).expand(tokens.B, -1, -1)], 1)
        sequence = sequence[:, None, None]
        for block in self.blocks:
            sequence, _ = block(sequence, None)
        cells = self.norm(sequence[:, 0, 0, self.num_tokens :]).unflatten(1, (T, H, W))
        frames: Tensor = self.pixels_of_cells(cells)
        return frames.transpose(1, 2)

    def _sequence(self, tokens: Tokens) -> Tensor:
        """The embeddings of all `num_tokens` tokens, [B,num_tokens,width]; those of missing ones are the same."""
        embedded = torch.where(tokens.mask[..., None], self.embed(tokens.features), self.missing)
        rest = self.missing.expand(tokens.B, self.num_tokens - tokens.N, -1)
        return torch.cat([embedded, rest], 1) + self.order

    def _masks(self, T: int, H: int, W: int) -> Tensor:
        """The mask tokens of all cells with their positions, [T*H*W,width]."""
        if self.learned is not None:
            positions: Tensor = self.learned(T, H, W).flatten(0, 2)
        else:
            angles = rotary_angles(grid_positions(T, H, W, device=self.mask.device), self.width, 3)
            positions = torch.cat([angles.sin(), angles.cos()], 1).to(self.mask.dtype)
        return self.mask + positions
