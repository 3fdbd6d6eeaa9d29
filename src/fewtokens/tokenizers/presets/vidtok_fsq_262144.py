"""VidTok with finite scalar quantization, 262,144 codes."""

from __future__ import annotations

from fewtokens.tokenizers.preset import Preset

PRESET = Preset(
    spec="vidtok(6) | fsq((8, 8, 8, 8, 8, 8)) > vidtok()",
    clip=(17, 256, 256),
    tiny="vidtok(6, width=8, depth=1) | fsq((8, 8, 8, 8, 8, 8)) > vidtok(width=8, depth=1)",
    tiny_clip=(9, 32, 32),
    paper="VidTok: A Versatile and Open-Source Video Tokenizer, arXiv 2412.13061",
    license="MIT (code and weights)",
    tokens=5120,
    parameters=157,
    figures={
        "MCL-JCV, 17x256x256 at 30 frames/s": "PSNR 29.82, SSIM 0.867, LPIPS 0.106, FVD 160.1",
        "the same, non-causal": "PSNR 30.78, SSIM 0.889, LPIPS 0.091, FVD 132.1",
    },
    differs=(
        "The network is that of the released models, weight for weight. Videos are padded at the end, not in front. "
        "The losses on the codes (entropy and commitment; 0.07 dB in the paper) are left out. The other models of the "
        "paper are specs: causal=False with first_frame=False, other values of stride and mult, and gaussian instead "
        "of fsq for continuous tokens."
    ),
)
