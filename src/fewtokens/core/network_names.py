"""The names of networks, read without torch. Names follow a grammar, so any combination of its parts is valid:

vit_b16                          ViT-B, patches of 16 pixels
tokenlearner_vit_b16_8at6        with TokenLearner, 8 tokens per frame from layer 6 on
tokenlearner_vit_l16_8at18_fuser with TokenFuser
tokenlearner_vit_l16_35_16at12   35 blocks ("24+11")
vivit_l16                        ViViT-L, tubelets of 2 frames, joint attention
vivit_b16_factorized_encoder     the other attentions of ViViT: also _factorized_self, _factorized_dot
tokenlearner_vivit_l16_16at12
x2plus1d_m, tokenlearner_x2plus1d_m
"""

from __future__ import annotations

import difflib
import re

from fewtokens.core.plain import one_line

ATTENTION = ("joint", "factorized_encoder", "factorized_self", "factorized_dot")
"""The attentions of `VisionTransformer`; the last three are the factorized ones of ViViT."""

SIZES = {
    "nano": (64, 4, 4),
    "micro": (128, 8, 4),
    "ti": (192, 12, 3),
    "s": (384, 12, 6),
    "b": (768, 12, 12),
    "l": (1024, 24, 16),
    "h": (1280, 32, 16),
}
"""(dim, depth, num_heads) of each size that a name can contain."""

PRESETS = {
    "vit_s16": "ViT-S/16 (arXiv 2010.11929), mean pooling over tokens",
    "vit_b16": "ViT-B/16",
    "vit_l16": "ViT-L/16",
    "vit_h14": "ViT-H/14",
    "tokenlearner_vit_s32_8at6": "TokenLearner S/32, 8 tokens from the middle block on (arXiv 2106.11297)",
    "tokenlearner_vit_b16_8at6": "TokenLearner B/16, 8 tokens from the middle block on",
    "tokenlearner_vit_b16_16at9": "TokenLearner B/16, the released ImageNet configuration (version 1.1 of the module)",
    "tokenlearner_vit_b16_8at6_fuser": "TokenLearner B/16 with TokenFuser",
    "tokenlearner_vit_b16_21_8at10": "B/16 (21): 21 blocks, 8 tokens from layer 10",
    "tokenlearner_vit_l16_16at12": "TokenLearner L/16, 16 tokens from the middle block on",
    "tokenlearner_vit_l16_8at18": "TokenLearner L/16, 8 tokens in the last quarter of the blocks",
    "tokenlearner_vit_l16_35_16at12": "L/16 24+11: 11 additional blocks on the 16 tokens",
    "tokenlearner_vit_l16_30_8at18": "L/16 24+6",
    "tokenlearner_vit_l10_35_16at18": "L/10 24+11, the paper's second largest",
    "vivit_b16": "ViViT-B/16x2, joint space-time attention (arXiv 2103.15691, model 1)",
    "vivit_l16": "ViViT-L/16x2, joint space-time attention",
    "vivit_b16_factorized_encoder": "ViViT-B/16x2, model 2 (factorized encoder)",
    "vivit_b16_factorized_self": "ViViT-B/16x2, model 3 (factorized self-attention)",
    "vivit_b16_factorized_dot": "ViViT-B/16x2, model 4 (factorized dot product)",
    "tokenlearner_vivit_b16_8at6": "TokenLearner in ViViT-B/16x2",
    "tokenlearner_vivit_l16_16at12": "TokenLearner 16at12 L/16, Kinetics (arXiv 2106.11297)",
    "tokenlearner_vivit_l16_8at18": "TokenLearner 8at18 L/16",
    "tokenlearner_vivit_l10_16at18_fuser": "TokenLearner 16at18 + Fuser L/10, the best on Kinetics-600",
    "x2plus1d_m": "X(2+1)D-M, the convolutional baseline on Charades and AViD",
    "tokenlearner_x2plus1d_m": "X(2+1)D-M with Conv2D + TokenLearner in three bottlenecks",
    "vit_nano8": "64 channels, 4 blocks, patches of 8 pixels: small enough to train on a laptop (ours)",
    "tokenlearner_vit_nano8_8at2": "vit_nano8 with TokenLearner (ours)",
    "vivit_nano8": "a video network of the size of vit_nano8 (ours)",
    "tokenlearner_vivit_nano8_8at2": "vivit_nano8 with TokenLearner (ours)",
}
"""One line about each network of the papers, or marked as ours; other names of the same grammar are valid too."""

_NAME = re.compile(
    rf"(?P<learner>tokenlearner_)?(?P<kind>vit|vivit)_(?P<size>{'|'.join(SIZES)})(?P<patch>\d+)"
    rf"(_(?P<depth>\d+))?(_(?P<attention>{'|'.join(ATTENTION)}))?(_(?P<tokens>\d+)at(?P<at>\d+)(?P<fuser>_fuser)?)?"
)


def parse_name(name: str) -> re.Match[str] | None:
    """Returns the parts of the name of a vision transformer, or None for one of the convolutional networks.

    Raises:
        ValueError: unknown name; suggests similar ones.
    """
    if name in ("x2plus1d_m", "tokenlearner_x2plus1d_m"):
        return None
    # Earlier versions spelled it "factorised".
    match = _NAME.fullmatch(name.replace("factorised", "factorized"))
    if match is None or bool(match["learner"]) != bool(match["tokens"]):
        close = difflib.get_close_matches(name, PRESETS, n=3)
        hint = f"did you mean {' or '.join(close)}?" if close else "list them with: fewtokens models"
        raise ValueError(f"no model named {one_line(name)!r}; {hint}")
    return match
