"""The decoder of Emu3's tokenizer."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from fewtokens.tokenizers.blocks.emu3 import build_emu3
from fewtokens.tokenizers.parts import GridDecoder


class Emu3(GridDecoder):
    """The decoder of Emu3 (arXiv 2409.18869), of transformers; its normalizations depend on the tokens of their place.

    Args:
        dim: channels of a token.
        width, mult, depth, attention, frames: as in the encoder.

    Raises:
        ValueError: transformers is not installed, or an argument is invalid.
    """

    causal = True

    def __init__(
        self,
        dim: int = 4,
        *,
        width: int = 256,
        mult: Sequence[int] = (1, 2, 2, 4),
        depth: int = 2,
        attention: Sequence[int] = (3,),
        frames: int = 4,
    ) -> None:
        super().__init__()
        self.dim, self.width, self.mult, self.depth = dim, width, tuple(mult), depth
        self.attention, self.frames = tuple(attention), frames
        network, self.stride = build_emu3(dim, width=width, mult=mult, depth=depth, attention=attention, frames=frames)
        self.decoder, self.post_quant_conv = network.decoder, network.post_quant_conv

    def pixels_of(self, latents: Tensor) -> Tensor:
        entered = self.post_quant_conv(latents)
        decoded: Tensor = self.decoder(entered.transpose(1, 2), latents.transpose(1, 2))
        # Its batch has all frames of all videos.
        return decoded.unflatten(0, (len(latents), -1)).transpose(1, 2)
