"""State-space blocks with pooling between two levels: an encoder whose cost is linear in the number of cells."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from fewtokens.tokenizers.blocks.state_space import StateSpaceBlock, checked_halves
from fewtokens.tokenizers.blocks.transformer import TubeletEmbedding
from fewtokens.tokenizers.parts import VideoEncoder


class StateSpace(VideoEncoder):
    """Embeds small tubelets, applies state-space blocks, pools 2 x 2 x 2 cells linearly, and applies more blocks.

    The encoder of MambaVideo (arXiv 2507.04559): scans within each frame, then over time at each place. Causal: cells
    do not depend on later frames. The patent application US20260087351A1 describes this encoder.

    Args:
        width: channels.
        stride: frames, rows and columns of a cell, all even; embedded tubelets have half of each.
        blocks: number of blocks before and after pooling.
        first_frame: whether the first frame has cells without other frames.
    """

    causal = True

    def __init__(
        self,
        width: int = 384,
        *,
        stride: Sequence[int] = (4, 8, 8),
        blocks: Sequence[int] = (2, 4),
        first_frame: bool = False,
    ) -> None:
        super().__init__()
        self.stride, self.blocks = checked_halves(stride, blocks), blocks
        self.width, self.first_frame = width, first_frame
        half = [size // 2 for size in self.stride]
        self.embed = TubeletEmbedding(width, half, first_frame)
        self.fine = nn.Sequential(*(StateSpaceBlock(width) for _ in range(blocks[0])))
        self.pool = TubeletEmbedding(width, (2, 2, 2), first_frame, channels=width)
        self.coarse = nn.Sequential(*(StateSpaceBlock(width) for _ in range(blocks[1])))
        self.norm = nn.LayerNorm(width)

    @property
    def dim(self) -> int:
        return self.width

    def latents(self, x: Tensor) -> Tensor:
        fine: Tensor = self.fine(self.embed(x))
        coarse: Tensor = self.norm(self.coarse(self.pool(fine.movedim(-1, 1))))
        return coarse.movedim(-1, 1)
