"""CODA: a frozen continuous autoencoder, made discrete from coarse to fine by attention to a codebook."""

from __future__ import annotations

from fewtokens.tokenizers.preset import Preset

PRESET = Preset(
    spec=(
        "latents('black-forest-labs/FLUX.1-schnell') | multi_scale_vq((1, 2, 3, 4, 6, 9, 13, 18, 24, 32), size=65536, "
        "code_dim=16, convolutions=0, book='attention') > latents('black-forest-labs/FLUX.1-schnell', lora=32)"
    ),
    clip=(1, 256, 256),
    tiny=(
        "latents(channels=12) | multi_scale_vq((1, 2, 4), size=256, code_dim=12, convolutions=0, book='attention') "
        "> latents(lora=4)"
    ),
    tiny_clip=(1, 32, 32),
    recipe={"pixel": "l2"},
    paper="CODA: Repurposing Continuous VAEs for Discrete Tokenization, arXiv 2503.17760",
    license="Apache-2.0",
    figures={"rFID, ImageNet 256, 8x": "0.43", "rFID, ImageNet 256, 16x": "1.34", "codebook usage": "100 %"},
    differs=(
        "This is the 8x variant on the autoencoder of FLUX; the 16x variant on that of MAR, with scales (1, 2, 3, 4, "
        "5, 6, 8, 10, 13, 16) and 16384 entries, needs its weights in the format of diffusers. Pixels are compared by "
        "squared distance only (the paper's code adds 0.2 times the absolute distance), and the discriminator has no "
        "DINO features. The tiny size adapts the lowest cosine coefficients of patches, which need no weights."
    ),
)
