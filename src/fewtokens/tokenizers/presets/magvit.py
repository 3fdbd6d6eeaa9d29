"""The 3-D VQ tokenizer of MAGVIT."""

from __future__ import annotations

from fewtokens.tokenizers.preset import Preset

PRESET = Preset(
    spec="magvit(256) | vq(1024, code_dim=256, cosine=False) > magvit()",
    clip=(16, 128, 128),
    tiny="magvit(32, width=8, depth=1) | vq(256, code_dim=8) > magvit(width=8, depth=1)",
    tiny_clip=(8, 32, 32),
    paper="MAGVIT: Masked Generative Video Transformer, arXiv 2212.05199",
    license="Apache-2.0 (code in JAX; no weights for PyTorch)",
    tokens=1024,
    parameters=158,
    figures={"UCF-101 (train), 16x128x128": "rFVD 25, PSNR 22.0, SSIM 0.701, LPIPS 0.099"},
    differs=(
        "158 M parameters are those of encoder, decoder and codebook. The codebook follows a moving mean, and unused "
        "entries restart; the authors train it by gradient with an entropy loss. Training on images first, with "
        "weights then inflated to 3-D, is optional: see fewtokens.tokenizers.blocks.inflate."
    ),
)
