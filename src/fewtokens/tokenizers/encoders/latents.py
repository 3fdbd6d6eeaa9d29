"""The latents of a frozen autoencoder as the encoder of a tokenizer."""

from __future__ import annotations

from einops import rearrange
from torch import Tensor

from fewtokens.tokenizers.blocks.autoencoder import Half, grouped_stride
from fewtokens.tokenizers.parts import VideoEncoder


class Latents(VideoEncoder):
    """Maps frames to the latents of an autoencoder that is not trained: the means, normalized as in its config.

    Args:
        network: a folder or hub id of diffusers (of images `AutoencoderKL` and `AutoencoderDC`; of videos those of Wan,
            CogVideoX, HunyuanVideo and Cosmos), or "dct": the lowest cosine coefficients of patches, a small
            autoencoder that needs no weights.
        groups: tokens of a latent, which divides its channels and its height in pixels. The tokens are successive
            rows of the grid. Default: 1.
        patch, channels: of "dct"; channels are 3 k^2 for k * k frequencies.

    Raises:
        ValueError: diffusers is not installed, no such folder, or another class of network.
    """

    def __init__(self, network: str = "dct", *, groups: int = 1, patch: int = 8, channels: int = 12) -> None:
        super().__init__()
        self.coder = Half(network, "encoder", patch=patch, channels=channels)
        self.stride, self.first_frame = grouped_stride(self.coder, groups), self.coder.first_frame
        self.causal = not self.coder.is_video
        self.network, self.groups = network, groups
        self.patch, self.channels = self.coder.stride[1], self.coder.channels

    @property
    def dim(self) -> int:
        return self.channels // self.groups

    def padded(self, frames: int, height: int, width: int) -> tuple[int, int, int]:
        frames, _, width = super().padded(frames, height, width)
        return frames, -(-height // self.patch) * self.patch, width

    def latents(self, x: Tensor) -> Tensor:
        return rearrange(self.coder.encode(x), "b (g c) t h w -> b c t (h g) w", g=self.groups)
