"""The mirror of the state-space encoder."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from fewtokens.tokenizers.blocks.state_space import StateSpaceBlock, checked_halves
from fewtokens.tokenizers.blocks.transformer import TubeletPixels
from fewtokens.tokenizers.parts import GridDecoder


class StateSpace(GridDecoder):
    """Applies state-space blocks, divides each cell linearly into 2 x 2 x 2, applies more blocks, and makes pixels.

    The mirror of the encoder of the same name. Causal: frames do not depend on later cells.

    Args:
        dim: channels of a token.
        width: channels.
        stride: frames, rows and columns of a cell, all even.
        blocks: number of blocks after and before the division, in the order of the encoder.
        first_frame: whether the first row of cells is the first frame alone.
    """

    causal = True

    def __init__(
        self,
        dim: int = 384,
        *,
        width: int = 384,
        stride: Sequence[int] = (4, 8, 8),
        blocks: Sequence[int] = (2, 4),
        first_frame: bool = False,
    ) -> None:
        super().__init__()
        self.stride, self.blocks = checked_halves(stride, blocks), blocks
        self.dim, self.width, self.first_frame = dim, width, first_frame
        half = [size // 2 for size in self.stride]
        self.embed = nn.Linear(dim, width)
        self.coarse = nn.Sequential(*(StateSpaceBlock(width) for _ in range(blocks[1])))
        self.divide = TubeletPixels(width, (2, 2, 2), first_frame, channels=width)
        self.fine = nn.Sequential(*(StateSpaceBlock(width) for _ in range(blocks[0])))
        self.norm = nn.LayerNorm(width)
        self.pixels_of_cells = TubeletPixels(width, half, first_frame)

    def pixels_of(self, latents: Tensor) -> Tensor:
        coarse: Tensor = self.coarse(self.embed(latents.movedim(1, -1)))
        fine: Tensor = self.fine(self.divide(coarse).movedim(1, -1))
        return self.pixels_of_cells(self.norm(fine))
