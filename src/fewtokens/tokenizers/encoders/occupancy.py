"""Encoder of occupancy grids seen from above."""

from __future__ import annotations

from torch import Tensor, nn

from fewtokens.tokenizers.blocks.residual2d import Residual2d
from fewtokens.tokenizers.parts import VideoEncoder


class Occupancy(VideoEncoder):
    """Embeds the class of each voxel; the embeddings of a column are the channels of an image that convolutions encode.

    The tokenizer of I2-World (arXiv 2507.09144). Volumes are int64 [B,T,X,Y,Z]; each frame is encoded on its own, and a
    cell covers 4 x 4 columns.

    Args:
        classes: number of classes of voxels, one of them empty space.
        levels: number Z of voxels of a column.
        embed: channels of the embedding of a voxel.
        width: channels of a token.
        blocks: residual blocks per resolution.
    """

    causal = True

    def __init__(
        self, classes: int = 18, *, levels: int = 16, embed: int = 16, width: int = 128, blocks: int = 2
    ) -> None:
        super().__init__()
        self.classes, self.levels, self.embed, self.width, self.blocks = classes, levels, embed, width, blocks
        self.stride = (1, 4, 4)
        self.embedding = nn.Embedding(classes, embed)
        self.network = nn.Sequential(
            nn.Conv2d(levels * embed, width, 3, padding=1),
            *(Residual2d(width) for _ in range(blocks)),
            nn.Conv2d(width, width, 4, 2, 1),
            *(Residual2d(width) for _ in range(blocks)),
            nn.Conv2d(width, width, 4, 2, 1),
            *(Residual2d(width) for _ in range(blocks)),
            nn.Conv2d(width, width, 3, padding=1),
        )

    @property
    def dim(self) -> int:
        return self.width

    def latents(self, x: Tensor) -> Tensor:
        """Encodes volumes [B,T,X,Y,Z] to [B,C,T,X/4,Y/4]."""
        columns = self.embedding(x).flatten(-2).movedim(-1, 2)
        return self.network(columns.flatten(0, 1)).unflatten(0, x.shape[:2]).transpose(1, 2)
