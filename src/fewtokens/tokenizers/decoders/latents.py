"""The decoder of a frozen autoencoder as the decoder of a tokenizer, adapted by a few trained weights."""

from __future__ import annotations

import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from fewtokens.tokenizers.blocks.autoencoder import Half, add_lora, grouped_stride
from fewtokens.tokenizers.parts import GridDecoder


class Latents(GridDecoder):
    """Decodes latents by an autoencoder that is not trained.

    With neither `lora` nor `rectifier` it has no trained weights. Both start as the identity: the tokenizer then equals
    the autoencoder on quantized latents.

    Args:
        network: see the encoder `latents`.
        dim: channels of a token.
        groups: tokens of a latent, see the encoder `latents`.
        lora: rank of the trained convolutions that are added to those of the residual blocks, as in CODA
            (arXiv 2503.17760); 0 for none.
        rectifier: channels of a network of `blocks` residual blocks that corrects the quantized latents before they are
            decoded, as in ReVQ (arXiv 2507.10547); 0 for none. Published: three EfficientViT blocks of 512 channels;
            ours are convolutions.
        blocks: residual blocks of the rectifier.
        patch: of "dct".

    Raises:
        ValueError: see the encoder `latents`.
    """

    def __init__(
        self,
        network: str = "dct",
        *,
        dim: int = 12,
        groups: int = 1,
        lora: int = 0,
        rectifier: int = 0,
        blocks: int = 3,
        patch: int = 8,
    ) -> None:
        super().__init__()
        if min(lora, rectifier, blocks) < 0:
            raise ValueError(f"lora, rectifier and blocks must be at least 0, got {lora}, {rectifier} and {blocks}")
        self.coder = Half(network, "decoder", patch=patch, channels=dim * groups)
        self.stride, self.first_frame = grouped_stride(self.coder, groups), self.coder.first_frame
        self.network, self.groups = network, groups
        self.dim, self.patch = self.coder.channels // groups, self.coder.stride[1]
        self.lora, self.rectifier, self.blocks = lora, rectifier, blocks
        if lora:
            add_lora(self.coder, lora)
        self.correction = Rectifier(self.coder.channels, rectifier, blocks) if rectifier else None

    def pixels_of(self, latents: Tensor) -> Tensor:
        return self.coder.decode(self.correct(latents))

    def correct(self, latents: Tensor) -> Tensor:
        """The latents [B,g*C,T,H,W] that are decoded, from the features [B,C,T,H*g,W] of all cells."""
        z = self.whole(latents)
        return z if self.correction is None else self.correction(z)

    def whole(self, latents: Tensor) -> Tensor:
        """The latents of features, not corrected; shapes as in `correct`."""
        return rearrange(latents, "b c t (h g) w -> b (g c) t h w", g=self.groups)


class Rectifier(nn.Module):
    """Adds a correction, which is zero at the start, to latents [B,C,T,H,W] of each frame."""

    def __init__(self, dim: int, width: int, blocks: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(dim, width, 3, padding=1)
        self.residuals = nn.ModuleList(
            nn.Sequential(
                nn.GroupNorm(1, width), nn.SiLU(), nn.Conv2d(width, width, 3, padding=1),
                nn.GroupNorm(1, width), nn.SiLU(), nn.Conv2d(width, width, 3, padding=1),
            )
            for _ in range(blocks)
        )  # fmt: skip
        self.last = nn.Conv2d(width, dim, 3, padding=1)
        nn.init.zeros_(self.last.weight)
        if self.last.bias is not None:
            nn.init.zeros_(self.last.bias)

    def forward(self, latents: Tensor) -> Tensor:
        x = self.first(latents.transpose(1, 2).flatten(0, 1))
        for residual in self.residuals:
            x = x + residual(x)
        correction: Tensor = self.last(F.silu(x))
        return latents + correction.unflatten(0, (len(latents), -1)).transpose(1, 2)
