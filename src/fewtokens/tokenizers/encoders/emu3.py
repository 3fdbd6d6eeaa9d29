"""The encoder of Emu3's tokenizer."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from fewtokens.tokenizers.blocks.emu3 import build_emu3
from fewtokens.tokenizers.parts import VideoEncoder


class Emu3(VideoEncoder):
    """The encoder of Emu3 (arXiv 2409.18869), of transformers: levels of each frame, then convolutions over time.

    In training, two normalizations over time share statistics between videos (batch normalization), as there.

    Args:
        channels: of a token.
        width: channels of the first level, a multiple of 32.
        mult: factor of the channels of each level; a cell has 2 ** (levels - 1) rows and columns.
        depth: residual blocks of a level, and over time.
        attention: levels, counted from 0, with attention within the frame; they have the channels of the last.
        frames: of a cell, a power of 2.

    Raises:
        ValueError: transformers is not installed, or an argument is invalid.
    """

    causal = True

    def __init__(
        self,
        channels: int = 4,
        *,
        width: int = 256,
        mult: Sequence[int] = (1, 2, 2, 4),
        depth: int = 2,
        attention: Sequence[int] = (3,),
        frames: int = 4,
    ) -> None:
        super().__init__()
        self.channels, self.width, self.mult, self.depth = channels, width, tuple(mult), depth
        self.attention, self.frames = tuple(attention), frames
        network, self.stride = build_emu3(
            channels, width=width, mult=mult, depth=depth, attention=attention, frames=frames
        )
        self.encoder, self.quant_conv = network.encoder, network.quant_conv

    @property
    def dim(self) -> int:
        return self.channels

    def latents(self, x: Tensor) -> Tensor:
        encoded: Tensor = self.quant_conv(self.encoder(x.transpose(1, 2)).transpose(1, 2))
        return encoded
