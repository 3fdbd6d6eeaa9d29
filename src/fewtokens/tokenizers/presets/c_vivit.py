"""C-ViViT, the tokenizer of Phenaki: attention within each frame, then causal attention over time."""

from __future__ import annotations

from fewtokens.tokenizers.preset import Preset

PRESET = Preset(
    spec=(
        "tubelet_transformer(512, stride=(2, 8, 8), layers=(('space', 4), ('time', 4)), heads=8, "
        "positions=(6, 16, 16), first_frame=True) | vq(8192, code_dim=32) > "
        "tubelet_transformer(width=512, stride=(2, 8, 8), layers=(('time', 4), ('space', 4)), heads=8, "
        "positions=(6, 16, 16), first_frame=True)"
    ),
    clip=(11, 128, 128),
    tiny=(
        "tubelet_transformer(80, stride=(2, 8, 8), layers=(('space', 2), ('time', 2)), heads=4, "
        "positions=(3, 4, 4), first_frame=True) | vq(256, code_dim=8) > "
        "tubelet_transformer(width=80, stride=(2, 8, 8), layers=(('time', 2), ('space', 2)), heads=4, "
        "positions=(3, 4, 4), first_frame=True)"
    ),
    tiny_clip=(5, 32, 32),
    window=11,
    tiny_window=5,
    recipe={"pixel": "l2"},
    paper="Phenaki: Variable Length Video Generation from Open Domain Textual Descriptions, arXiv 2210.02399",
    license="no code published",
    figures={"FVD with MAGVIT-v2's generator, against 96.3 of a causal 3-D CNN (arXiv 2310.05737)": "437.5"},
    differs=(
        "Width, number of blocks and channels of a code are ours, since the paper's sizes could not be confirmed: 52 M "
        "parameters, where the comparison of MAGVIT-v2 has a C-ViViT of 90 M. Learned positions of places and frames, "
        "the former resized to other sizes of frames."
    ),
)
