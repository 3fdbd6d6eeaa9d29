"""The convolutional encoder of VQGAN on each frame."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from fewtokens.tokenizers.blocks.conv_up import ConvDown as Network
from fewtokens.tokenizers.parts import VideoEncoder


class ConvDown(VideoEncoder):
    """Encodes each frame by convolutions that halve it several times (VQGAN, arXiv 2012.09841).

    Args:
        width: number of channels of a token.
        widths: channels of the levels, from the largest to the smallest image; 2^(number - 1) pixels are the side of a
            cell.
        blocks: residual blocks of a level.
    """

    causal = True

    def __init__(self, width: int = 256, *, widths: Sequence[int] = (128, 128, 256, 256, 512), blocks: int = 2) -> None:
        super().__init__()
        self.width, self.widths, self.blocks = width, tuple(widths), blocks
        side = 2 ** (len(widths) - 1)
        self.stride = (1, side, side)
        self.network = Network(width, widths, blocks)

    @property
    def dim(self) -> int:
        return self.width

    def latents(self, x: Tensor) -> Tensor:
        return self.network(x.transpose(1, 2).flatten(0, 1)).unflatten(0, (len(x), -1)).transpose(1, 2)

    def step(self, x: Tensor, state: None = None) -> tuple[Tensor, None]:
        return self.latents(x), None
