"""MAGVIT-v2 with lookup-free quantization, as in Open-MAGVIT2."""

from __future__ import annotations

from fewtokens.tokenizers.preset import Preset

PRESET = Preset(
    spec="magvit2(18) | lfq(18) > magvit2()",
    clip=(17, 128, 128),
    tiny="magvit2(9, width=8, depth=1) | lfq(9) > magvit2(width=8, depth=1)",
    tiny_clip=(9, 32, 32),
    paper="Language Model Beats Diffusion: Tokenizer is Key to Visual Generation (MAGVIT-v2), arXiv 2310.05737; "
    "Open-MAGVIT2, arXiv 2409.04410",
    license="Apache-2.0 (Open-MAGVIT2, code and weights); MAGVIT-v2 is not released",
    tokens=1280,
    figures={
        "UCF-101, MAGVIT-v2": "rFVD 16.12, LPIPS 0.0694; deeper 8.62 and 0.0537",
        "UCF-101, Open-MAGVIT2": "rFVD 16",
    },
    differs=(
        "Both normalizations, and the conditions of that of the decoder, have the statistics of a frame and of its row "
        "of cells. Open-MAGVIT2 pools them over the clip, so its early cells depend on later frames; norm='clip' of "
        "both parts is its network, which its released weights load into. The entropy of the mean code is computed "
        "over groups of 9 bits, since 2^18 probabilities per token would take gigabytes."
    ),
)
