"""BSQ-ViT with 18 bits per token: patches of each frame, block-causal attention, binary spherical quantization."""

from __future__ import annotations

from fewtokens.tokenizers.preset import Preset

PRESET = Preset(
    spec=(
        "tubelet_transformer(768, stride=(1, 8, 8), channels=18, layers=(('block_causal', 12),), heads=12, "
        "positions=(16, 16, 16), style='bsq') | bsq(18, group=9) > "
        "tubelet_transformer(width=768, stride=(1, 8, 8), layers=(('block_causal', 12),), heads=12, "
        "positions=(16, 16, 16), style='bsq')"
    ),
    clip=(16, 128, 128),
    tiny=(
        "tubelet_transformer(96, stride=(1, 8, 8), channels=18, layers=(('block_causal', 3),), heads=3, "
        "positions=(4, 4, 4), style='bsq') | bsq(18, group=9) > "
        "tubelet_transformer(width=96, stride=(1, 8, 8), layers=(('block_causal', 3),), heads=3, positions=(4, 4, 4), "
        "style='bsq')"
    ),
    tiny_clip=(4, 32, 32),
    window=16,
    tiny_window=4,
    recipe={"pixel": "l2"},
    paper="Image and Video Tokenization with Binary Spherical Quantization, arXiv 2406.07548",
    license="code MIT; weights of images only",
    tokens=4096,
    figures={"UCF-101 16x128x128 PSNR, SSIM, LPIPS, rFVD": "32.08, .9421, .0244, 8.08"},
    differs=(
        "The entropy of the mean code is computed over two groups of 9 bits; the authors' 18-bit configuration has "
        "groups of 1. The weight of the entropies is constant; the authors start at three times the weight. Later "
        "frames are masked as in the paper; the authors' code adds 1 to their logits instead."
    ),
)
