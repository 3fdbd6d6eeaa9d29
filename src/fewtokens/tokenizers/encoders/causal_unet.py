"""The causal encoder of CDT: the first levels of a U-Net."""

from __future__ import annotations

from torch import Tensor, nn

from fewtokens.tokenizers.blocks.causal_conv import Cache, check_counts
from fewtokens.tokenizers.blocks.causal_unet import HALVE, HALVE_TIME, MAP_LEVELS, STRIDE, Down, ResBlock
from fewtokens.tokenizers.blocks.streaming import StreamingEncoder


class CausalUnet(StreamingEncoder):
    """Maps frames to mean and log-variance of latents of 4 x 8 x 8 pixels, for `gaussian`.

    The encoder of CDT (arXiv 2503.03708): four levels with a residual block each, and a refinement of the latents by
    residual blocks of falling width.

    Args:
        width: channels of the first level; the others have 2, 3 and 4 times as many.
        channels: channels of a latent; a token has twice as many.
    """

    stride = STRIDE
    first_frame = True
    causal = True

    def __init__(self, width: int = 128, *, channels: int = 16) -> None:
        super().__init__()
        check_counts(width=width, channels=channels)
        self.width, self.channels = width, channels
        dims = [level * width for level in MAP_LEVELS]
        self.blocks = nn.ModuleList(
            ResBlock(a, b, kernel=(3, 7, 7) if i == 0 else (3, 3, 3))
            for i, (a, b) in enumerate(zip([3, *dims[:-1]], dims, strict=True))
        )
        self.downs = nn.ModuleList(Down(b, space=HALVE[i], time=HALVE_TIME[i]) for i, b in enumerate(dims))
        self.direct = nn.Conv3d(dims[-1], 2 * channels, 1)
        self.refine = nn.ModuleList(ResBlock(a, b) for a, b in zip(dims[::-1], dims[-2::-1], strict=False))
        self.narrow = nn.Conv3d(dims[0], 2 * channels, 1)

    @property
    def dim(self) -> int:
        return 2 * self.channels

    def encode(self, x: Tensor, cache: Cache | None = None) -> Tensor:
        for block, down in zip(self.blocks, self.downs, strict=True):
            x = down(block(x, cache=cache), cache)
        direct = self.direct(x)
        for block in self.refine:
            x = block(x, cache=cache)
        encoded: Tensor = direct + self.narrow(x)
        return encoded
