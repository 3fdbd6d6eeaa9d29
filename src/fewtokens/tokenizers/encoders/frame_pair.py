"""The features of two successive frames, for tokens of the motion between them."""

from __future__ import annotations

from einops import rearrange
from torch import Tensor, nn

from fewtokens.tokenizers.encoders.frozen import Frozen
from fewtokens.tokenizers.parts import VideoEncoder


class FramePair(VideoEncoder):
    """Reads pairs of frames by a frozen ViT; a linear layer combines the two features of each cell.

    Args:
        network: the ViT, see the encoder `frozen`.
        width: number of channels of a cell.
        layer: the layer that is read, see there.
    """

    def __init__(self, network: str = "random", *, width: int = 768, layer: int = -1) -> None:
        super().__init__()
        self.network, self.width, self.layer = network, width, layer
        self.vit = Frozen(network, layers=(layer,))
        self.stride = (2, *self.vit.stride[1:])
        self.combine = nn.Linear(2 * self.vit.dim, width)

    @property
    def dim(self) -> int:
        return self.width

    def latents(self, x: Tensor) -> Tensor:
        pairs = rearrange(self.vit.latents(x), "b c (t p) h w -> b t h w (p c)", p=2)
        combined: Tensor = self.combine(pairs)
        return combined.movedim(-1, 1)
