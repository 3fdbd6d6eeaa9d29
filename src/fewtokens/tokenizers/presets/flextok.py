"""FlexTok: 1 to 256 ordered tokens over the latents of an autoencoder, decoded by rectified flow."""

from __future__ import annotations

from typing import Any

from fewtokens.tokenizers.decoders.dit import Dit
from fewtokens.tokenizers.preset import Preset
from fewtokens.tokenizers.tokenizer import Tokenizer


class FlexTok(Tokenizer):
    """A tokenizer whose decoder is aligned with DINOv2."""

    def __init__(self, *parts: Any, **options: Any) -> None:
        super().__init__(*parts, **options)
        assert isinstance(self.decoder, Dit)
        self.decoder.align("facebook/dinov2-large")


PRESET = Preset(
    spec=(
        "latents('EPFL-VILAB/flextok_vae_c16') | bottleneck(1152) "
        "| learned_queries(256, num_layers=18, heads=18, ordered=True) | fsq((8, 8, 8, 5, 5, 5)) "
        "| tail_drop(distribution='uniform_power_of_two', share='video') "
        "> dit(stride=(1, 8, 8), size=(1792, 28), slots=256, network='EPFL-VILAB/flextok_vae_c16')"
    ),
    clip=(1, 256, 256),
    tiny=(
        "latents(patch=4) | bottleneck(64) | learned_queries(16, num_layers=2, heads=2, ordered=True) "
        "| fsq((8, 5, 5, 5)) | tail_drop(distribution='uniform_power_of_two', share='video') "
        "> dit(stride=(1, 4, 4), size=(64, 3), slots=16, patch=4, steps=8)"
    ),
    tiny_clip=(1, 32, 32),
    window=1,
    tiny_window=1,
    kind=FlexTok,
    paper="FlexTok: Resampling Images into 1D Token Sequences of Flexible Length, arXiv 2502.13967",
    license="Apple sample code license; weights for research only",
    tokens=256,
    differs=(
        "The size is d18-d28. The encoder reads each latent; FlexTok reads patches of 2 x 2. Blocks are those of DiT "
        "with biases and two-layer MLPs (SwiGLU, no biases, separate modulation of patches and registers there). "
        "Guidance is off by default: `decoder(tokens, guidance=7.5, projected=True)` is that of the authors. The tiny "
        "size encodes cosine coefficients of patches, decodes pixels and has a random ViT as teacher."
    ),
)
