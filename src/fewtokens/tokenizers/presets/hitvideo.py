"""HiTVideo: codes at several depths, the finer ones given the coarser."""

from __future__ import annotations

from fewtokens.tokenizers.preset import Preset

PRESET = Preset(
    spec=(
        "causal_conv(width=128, depth=2) | hierarchical_fsq(hidden=256, dropout=0.25) > causal_conv(width=128, depth=2)"
    ),
    clip=(65, 256, 256),
    tiny="causal_conv(width=16) | hierarchical_fsq(hidden=32, dropout=0.25) > causal_conv(width=16)",
    tiny_clip=(9, 32, 32),
    paper="HiTVideo: Hierarchical Tokenizers for Enhancing Text-to-Video Generation with Autoregressive LLMs, arXiv "
    "2503.11513",
    license="no code found",
    figures={"bits per pixel": "about 70 % below the baselines of the paper"},
    differs=(
        "The paper states neither the grids of the depths nor the sizes of its codebooks and layers. Ours have cells "
        "of 4x8x8, 8x16x16 and 8x32x32 with the rule of VQ-VAE-2, FSQ of 64,000 codes at each depth, and the small "
        "causal network at a larger width. The finest depth alone has as many tokens as Cosmos; the others add 17 %. "
        "A quarter of the training clips drop the finer codes, since otherwise the finest also determine the coarse "
        "content."
    ),
)
