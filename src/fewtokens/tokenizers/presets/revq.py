"""ReVQ: latents of a frozen autoencoder, a codebook for each position, and a network that corrects the result."""

from __future__ import annotations

import torch
from torch import Tensor

from fewtokens.core.tokens import Tokens
from fewtokens.tokenizers.decoders.latents import Latents
from fewtokens.tokenizers.preset import Preset
from fewtokens.tokenizers.tokenizer import Tokenizer


class ReVq(Tokenizer):
    """A tokenizer that also compares the corrected latents with those of the frozen autoencoder."""

    def extra_losses(self, frames: Tensor, tokens: Tokens, decoded: Tensor | None) -> dict[str, Tensor]:
        assert isinstance(self.decoder, Latents)
        with torch.no_grad():
            target = self.encoder.latents(frames.transpose(1, 2))
        corrected = self.decoder.correct(tokens.unmerge().movedim(-1, 1))
        return {"latents": (corrected - self.decoder.whole(target)).square().mean()}


PRESET = Preset(
    spec=(
        "latents('mit-han-lab/dc-ae-f32c32-in-1.0-diffusers', groups=8) | position_vq(16384, groups=512, code_dim=4) "
        "> latents('mit-han-lab/dc-ae-f32c32-in-1.0-diffusers', groups=8, rectifier=512)"
    ),
    clip=(1, 256, 256),
    tiny=(
        "latents(channels=12, groups=4) | position_vq(64, groups=64, code_dim=3) "
        "> latents(groups=4, rectifier=32, blocks=1)"
    ),
    tiny_clip=(1, 32, 32),
    kind=ReVq,
    recipe={"pixel": "l2"},
    paper="Quantize-then-Rectify: Efficient VQ-VAE Training (ReVQ), arXiv 2507.10547",
    license="MIT",
    tokens=512,
    figures={"rFID, ImageNet 256": "1.06", "training": "22 hours on one RTX 4090"},
    differs=(
        "A token is four channels of one latent; in the paper's code four successive columns of one channel. The "
        "network that corrects latents has residual convolutions instead of EfficientViT blocks. Codebooks begin at "
        "random, not at latents of the data. In frames of another size, positions share the 512 codebooks in turn. "
        "The tiny size uses the lowest cosine coefficients of patches, which need no weights."
    ),
)
