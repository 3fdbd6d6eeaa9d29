"""Decoder of occupancy grids."""

from __future__ import annotations

from torch import Tensor, nn

from fewtokens.core.tokens import Tokens
from fewtokens.tokenizers.blocks.residual2d import Residual2d
from fewtokens.tokenizers.parts import Decoder


class Occupancy(Decoder):
    """Decodes the tokens of cells to logits of the classes of voxels, the mirror of the encoder of the same name.

    Args:
        dim: number of channels of a token.
        classes, levels, embed, blocks: as of the encoder.
    """

    causal = True

    def __init__(
        self, dim: int = 128, *, classes: int = 18, levels: int = 16, embed: int = 16, blocks: int = 2
    ) -> None:
        super().__init__()
        self.dim, self.classes, self.levels, self.embed, self.blocks = dim, classes, levels, embed, blocks
        self.stride = (1, 4, 4)
        self.network = nn.Sequential(
            nn.Conv2d(dim, dim, 3, padding=1),
            *(Residual2d(dim) for _ in range(blocks)),
            nn.ConvTranspose2d(dim, dim, 4, 2, 1),
            *(Residual2d(dim) for _ in range(blocks)),
            nn.ConvTranspose2d(dim, dim, 4, 2, 1),
            *(Residual2d(dim) for _ in range(blocks)),
            nn.Conv2d(dim, levels * embed, 3, padding=1),
        )
        self.head = nn.Sequential(nn.Linear(embed, 2 * embed), nn.Softplus(), nn.Linear(2 * embed, classes))

    def forward(self, tokens: Tokens) -> Tensor:
        """Decodes tokens to logits [B,T,X,Y,Z,classes]."""
        x = tokens.unmerge()
        columns = self.network(x.flatten(0, 1).movedim(-1, 1)).movedim(1, -1)
        logits: Tensor = self.head(columns.unflatten(-1, (self.levels, self.embed))).unflatten(0, x.shape[:2])
        return logits
