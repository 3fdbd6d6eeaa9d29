"""Divot: a clip as 64 vectors that condition a video diffusion network."""

from __future__ import annotations

from fewtokens.tokenizers.preset import Preset

PRESET = Preset(
    spec=(
        "frozen_video('laion/CLIP-ViT-H-14-laion2B-s32B-b79K') | perceiver(64, num_layers=6, heads=16) "
        "| bottleneck(256) > dit(stride=(3, 48, 48), size=(768, 12), slots=64, network='stabilityai/sd-vae-ft-mse', "
        "steps=50)"
    ),
    clip=(15, 240, 240),
    tiny=(
        "frozen_video(stride=(2, 16, 16), patches=2, width=32, depth=1, hidden=64, layers=1) "
        "| perceiver(8, num_layers=1, heads=2) | bottleneck(16) "
        "> dit(stride=(2, 16, 16), size=(64, 3), slots=8, patch=4, objective='x', steps=1)"
    ),
    tiny_clip=(4, 32, 32),
    window=15,
    tiny_window=4,
    paper="Divot: Diffusion Powers Video Tokenizer for Comprehension and Generation, arXiv 2412.04432",
    license="Apache-2.0, with parts of other authors",
    tokens=64,
    figures={
        "in a language model": "EgoSchema 46.5, Perception 58.3, MVBench 52.1, MSVD-QA 76.4, ActivityNet-QA 55.8",
    },
    differs=(
        "The decoder is a diffusion transformer of 12 blocks over latents of single frames, trained from scratch, "
        "instead of the pretrained video network DynamiCrafter (16 frames, DDIM with 50 steps, guidance 7.5); so it is "
        "far smaller, and frames are not those of the paper. Clips have 15 frames of 240 pixels, of which every third "
        "is encoded. One Perceiver with 64 queries of 1,024 channels and a linear layer to 256 take the place of two "
        "with 125 and 64. The Gaussian mixture of the language model is not part of the tokenizer. The tiny size reads "
        "a ViT with random weights, and decodes pixels in one step."
    ),
)
