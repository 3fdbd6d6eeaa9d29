"""OmniTokenizer with a codebook: attention in windows of a frame, then over time; images and videos."""

from __future__ import annotations

from fewtokens.tokenizers.preset import Preset

PRESET = Preset(
    spec=(
        "tubelet_transformer(512, stride=(4, 8, 8), layers=(('space', 2), ('window8', 2), ('time', 4)), heads=8, "
        "first_frame=True) | vq(8192, code_dim=8) > "
        "tubelet_transformer(width=512, stride=(4, 8, 8), layers=(('time', 4), ('space', 4)), heads=8, "
        "first_frame=True)"
    ),
    clip=(17, 256, 256),
    tiny=(
        "tubelet_transformer(80, stride=(4, 8, 8), layers=(('space', 1), ('window2', 1), ('time', 2)), heads=4, "
        "first_frame=True) | vq(256, code_dim=8) > "
        "tubelet_transformer(width=80, stride=(4, 8, 8), layers=(('time', 2), ('space', 2)), heads=4, "
        "first_frame=True)"
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
        "Rotary positions in all layers, where the authors have a relative bias first and a causal depthwise "
        "convolution in each plain layer; no LayerNorm of the pixels; the decoder attends over time first, then in "
        "space, as C-ViViT's."
    ),
)
