"""ViTok S-B: Llama-style transformers over tubelets, a small encoder and a larger decoder, continuous tokens."""

from __future__ import annotations

from fewtokens.tokenizers.preset import Preset

PRESET = Preset(
    spec=(
        "tubelet_transformer(768, stride=(4, 8, 8), layers=(('full', 6),), heads=12, style='llama') "
        "| gaussian(16, kl=0.001) > "
        "tubelet_transformer(width=768, stride=(4, 8, 8), layers=(('full', 12),), heads=12, style='llama')"
    ),
    clip=(16, 128, 128),
    tiny=(
        "tubelet_transformer(96, stride=(4, 8, 8), layers=(('full', 2),), heads=4, style='llama') "
        "| gaussian(16, kl=0.001) > "
        "tubelet_transformer(width=96, stride=(4, 8, 8), layers=(('full', 4),), heads=4, style='llama')"
    ),
    tiny_clip=(4, 32, 32),
    window=16,
    tiny_window=4,
    recipe={"pixel": "charbonnier"},
    paper="Learnings from Scaling Visual Tokenizers for Reconstruction and Generation, arXiv 2501.09755",
    license="no code or video weights published",
    tokens=1024,
    parameters=129,
    figures={
        "UCF-101 train 16x128x128 rFID, rFVD, PSNR, SSIM, tubelets of 4x8x8": "2.13, 8.04, 30.11, .923",
        "the same, tubelets of 8x8x8": "2.78, 20.05, 28.55, .898",
        "the same, tubelets of 4x16x16": "4.46, 53.98, 26.26, .850",
    },
    differs="The weight of the KL divergence, 0.001, could not be confirmed.",
)
