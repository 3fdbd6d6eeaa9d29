"""The discrete video tokenizer of Cosmos, 4x8x8."""

from __future__ import annotations

from fewtokens.tokenizers.preset import Preset

PRESET = Preset(
    spec="cosmos(6) | fsq((8, 8, 8, 5, 5, 5)) > cosmos()",
    clip=(17, 256, 256),
    window=49,
    tiny="cosmos(6, width=12, depth=1) | fsq((8, 8, 8, 5, 5, 5)) > cosmos(width=12, depth=1)",
    tiny_clip=(9, 32, 32),
    paper="Cosmos World Foundation Model Platform for Physical AI, arXiv 2501.03575",
    license="Apache-2.0 (code), NVIDIA Open Model License (weights)",
    tokens=5120,
    parameters=101,
    figures={
        "TokenBench": "PSNR 35.14, SSIM 0.887, rFVD 19.67",
        "MCL-JCV, 17x256x256 (measured by VidTok)": "PSNR 28.07, SSIM 0.743, LPIPS 0.212, FVD 227.7",
    },
    differs=(
        "The layers are those of AutoencoderKLCosmos of diffusers (104.7 M parameters; the published count is 101 M), "
        "with 16 channels in front of the 6 of FSQ, as in the configuration of the authors; diffusers has no discrete "
        "model. Long videos are encoded in windows of 49 frames. Gram and adversarial losses of the second stage are "
        "settings of training."
    ),
)
