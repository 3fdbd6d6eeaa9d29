"""OmniTokenizer with a codebook: attention in windows of a frame, then over time; images and videos."""

from __future__ import annotations

from fewtokens.tokenizers.preset import Preset

PRESET = Preset(
    spec=(
        "omnitokenizer(512, stride=(4, 8, 8), layers=(('space', 2), ('window8', 2), ('time', 4)), heads=8) | "
        "vq(8192, code_dim=8, cosine=False) > "
        "omnitokenizer(width=512, stride=(4, 8, 8), layers=(('time', 4), ('space', 4)), heads=8)"
    ),
    clip=(17, 256, 256),
    tiny=(
        "omnitokenizer(80, stride=(4, 8, 8), layers=(('space', 1), ('window2', 1), ('time', 2)), heads=4) | "
        "vq(256, code_dim=8, cosine=False) > "
        "omnitokenizer(width=80, stride=(4, 8, 8), layers=(('time', 2), ('space', 2)), heads=4)"
    ),
    tiny_clip=(5, 32, 32),
    window=17,
    tiny_window=5,
    recipe={"pixel": "l1"},
    paper="OmniTokenizer: A Joint Image-Video Tokenizer for Visual Generation, arXiv 2406.09399",
    license="code MIT",
    tokens=5120,
    parameters=51,
    figures={
        "rFVD, UCF-101 train 16x128x128, trained on ImageNet + UCF-101": "42.35",
        "rFVD, Kinetics-600, trained on ImageNet + Kinetics-600": "25.97",
        "TokenBench PSNR, SSIM, rFVD": "30.15, .827, 53.6",
    },
    differs=(
        "Of two published counts of parameters, 51 M (in VidTok's tables) and 82.2 M (in LARP's), it has the first. "
        "Convolutions of blocks over time read the cells in their order; the released code reads them in another, "
        "which mixes frames, so that it is not causal: `scrambled=True`, which `load_tokenizer` sets for released "
        "weights. Rotary positions in space from the beginning, where the first stage of the authors has relative "
        "ones. Unused entries of the codebook restart, where the authors' begin at tokens of the first batch."
    ),
)
