"""AToken So/C: one transformer for images and videos, with rotary positions on four axes."""

from __future__ import annotations

from fewtokens.tokenizers.preset import Preset

PRESET = Preset(
    spec=(
        "tubelet_transformer(1152, stride=(4, 16, 16), layers=(('full', 27),), heads=16, positions='rotary4') "
        "| gaussian(48, kl=1e-8) > "
        "tubelet_transformer(width=1152, stride=(4, 16, 16), layers=(('full', 27),), heads=16, positions='rotary4')"
    ),
    clip=(16, 256, 256),
    tiny=(
        "tubelet_transformer(96, stride=(4, 8, 8), layers=(('full', 3),), heads=4, positions='rotary4') "
        "| gaussian(48, kl=1e-8) > "
        "tubelet_transformer(width=96, stride=(4, 8, 8), layers=(('full', 3),), heads=4, positions='rotary4')"
    ),
    tiny_clip=(4, 32, 32),
    window=16,
    tiny_window=4,
    recipe={"pixel": "l1"},
    paper="AToken: A Unified Tokenizer for Vision, arXiv 2509.14476",
    license="Apple sample code license; weights for research only",
    tokens=1024,
    figures={
        "TokenBench PSNR, rFVD, continuous": "36.07, 3.01",
        "TokenBench PSNR, rFVD, discrete": "33.12, 22.16",
    },
    differs=(
        "The continuous form; the discrete one has fsq((4, 4, 4, 4, 4, 4), groups=8), 8 codes of 4096 and 96 bits per "
        "token, in place of gaussian(48). The encoder is trained from scratch instead of from SigLIP2, with 4608 "
        "instead of 4304 hidden channels, and without the losses to text and to Gram matrices. An image is padded by "
        "repetition instead of zeros. Windows of 16 frames are independent, without cached keys and values of earlier "
        "ones; 3-D assets are left out."
    ),
)
