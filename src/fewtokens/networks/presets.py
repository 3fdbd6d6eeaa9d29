"""Networks by name. Names are read, so that any combination has one:

vit_b16                          ViT-B, patches of 16 pixels
tokenlearner_vit_b16_8at6        the same with 8 tokens from layer 6 on
tokenlearner_vit_l16_8at18_fuser with TokenFuser
tokenlearner_vit_l16_35_16at12   35 blocks ("24+11")
vivit_l16                        ViViT-L, tubelets of 2 frames, joint attention
vivit_b16_factorised_encoder     and the other attentions of ViViT
tokenlearner_vivit_l16_16at12
x2plus1d_m, tokenlearner_x2plus1d_m
"""

from __future__ import annotations

import difflib
import re
from typing import Any

import torch

from fewtokens.networks.base import Model, make_config
from fewtokens.networks.vit import ATTENTION, VisionTransformer
from fewtokens.networks.x2plus1d import X2plus1d

# dim, depth, num_heads
SIZES = {
    "nano": (64, 4, 4),
    "micro": (128, 8, 4),
    "ti": (192, 12, 3),
    "s": (384, 12, 6),
    "b": (768, 12, 12),
    "l": (1024, 24, 16),
    "h": (1280, 32, 16),
}

# Named in the papers, or here where it says so; any other combination of the same grammar works too.
PRESETS = {
    "vit_s16": "ViT-S/16 (arXiv 2010.11929), mean over the tokens",
    "vit_b16": "ViT-B/16",
    "vit_l16": "ViT-L/16",
    "vit_h14": "ViT-H/14",
    "tokenlearner_vit_s32_8at6": "TokenLearner S/32, 8 tokens from the middle on (arXiv 2106.11297)",
    "tokenlearner_vit_b16_8at6": "TokenLearner B/16, 8 tokens from the middle on",
    "tokenlearner_vit_b16_16at9": "the released ImageNet configuration (with version 1.1 of the module)",
    "tokenlearner_vit_b16_8at6_fuser": "the same with TokenFuser",
    "tokenlearner_vit_b16_21_8at10": "B/16 (21): 21 blocks, 8 tokens from layer 10",
    "tokenlearner_vit_l16_16at12": "TokenLearner L/16, 16 tokens from the middle on",
    "tokenlearner_vit_l16_8at18": "TokenLearner L/16, 8 tokens in the last quarter",
    "tokenlearner_vit_l16_35_16at12": "L/16 24+11: 11 more blocks on the 16 tokens",
    "tokenlearner_vit_l16_30_8at18": "L/16 24+6",
    "tokenlearner_vit_l10_35_16at18": "L/10 24+11, the paper's second largest",
    "vivit_b16": "ViViT-B/16x2, joint space-time attention (arXiv 2103.15691, model 1)",
    "vivit_l16": "ViViT-L/16x2, joint",
    "vivit_b16_factorised_encoder": "ViViT-B/16x2, model 2",
    "vivit_b16_factorised_self": "ViViT-B/16x2, model 3",
    "vivit_b16_factorised_dot": "ViViT-B/16x2, model 4",
    "tokenlearner_vivit_b16_8at6": "TokenLearner in ViViT-B/16x2",
    "tokenlearner_vivit_l16_16at12": "TokenLearner 16at12 L/16, Kinetics (arXiv 2106.11297)",
    "tokenlearner_vivit_l16_8at18": "TokenLearner 8at18 L/16",
    "tokenlearner_vivit_l10_16at18_fuser": "TokenLearner 16at18 + Fuser L/10, the best of Kinetics-600",
    "x2plus1d_m": "X(2+1)D-M, the convolutional baseline of Charades and AViD",
    "tokenlearner_x2plus1d_m": "X(2+1)D-M with Conv2D + TokenLearner in three bottlenecks",
    "vit_nano8": "64 channels, 4 blocks, patches of 8: small enough to train on a laptop (ours)",
    "tokenlearner_vit_nano8_8at2": "the same with TokenLearner (ours)",
    "vivit_nano8": "a video network of that size (ours)",
    "tokenlearner_vivit_nano8_8at2": "the same with TokenLearner (ours)",
}

_NAME = re.compile(
    rf"(?P<learner>tokenlearner_)?(?P<kind>vit|vivit)_(?P<size>{'|'.join(SIZES)})(?P<patch>\d+)"
    rf"(_(?P<depth>\d+))?(_(?P<attention>{'|'.join(ATTENTION)}))?(_(?P<tokens>\d+)at(?P<at>\d+)(?P<fuser>_fuser)?)?"
)


def names() -> list[str]:
    """The presets that are listed."""
    return list(PRESETS)


def preset(name: str) -> tuple[type[Model], dict[str, Any]]:
    """The kind of network and its settings, by name.

    Raises:
        ValueError: a name that cannot be read; says which are close.
    """
    if name in ("x2plus1d_m", "tokenlearner_x2plus1d_m"):
        return X2plus1d, {"module": "conv2d+tokenlearner" if name.startswith("token") else "conv2d+conv1d"}
    match = _NAME.fullmatch(name)
    if match is None or bool(match["learner"]) != bool(match["tokens"]):
        close = difflib.get_close_matches(name, PRESETS, n=3)
        hint = f"did you mean {' or '.join(close)}?" if close else "say fewtokens models for the list"
        raise ValueError(f"no model called {name!r}; {hint}")
    dim, depth, num_heads = SIZES[match["size"]]
    settings: dict[str, Any] = {
        "dim": dim,
        "depth": int(match["depth"] or depth),
        "num_heads": num_heads,
        "patch_size": int(match["patch"]),
    }
    if match["kind"] == "vivit":
        settings |= {
            "tubelet_size": 2,
            "num_frames": 32,
            "num_classes": 400,
            "head": "gap" if match["tokens"] else "token",
        }
    if match["attention"]:
        settings["attention"] = match["attention"]
        if match["attention"] in ("factorised_self", "factorised_dot"):
            settings["head"] = "gap"
    if match["tokens"]:
        settings |= {"learner": f"tokenlearner('{match['tokens']}/frame')", "at": int(match["at"])}
        settings["fuser"] = "fuser" if match["fuser"] else ""
        if name == "tokenlearner_vit_b16_16at9":
            settings["learner"] = "tokenlearner('16/frame', version='1.1')"
    return VisionTransformer, settings


def build(name: str, **changes: Any) -> Model:
    """A network of a preset with parameters drawn anew.

    Args:
        name: of a preset.
        changes: settings of the config that differ, such as num_classes=10, image_size=(96, 96).
    """
    kind, settings = preset(name)
    return kind(make_config(kind, settings | changes, name))


def on_meta(name: str, **changes: Any) -> Model:
    """A network without memory for its parameters, to count its cost."""
    with torch.device("meta"):
        return build(name, **changes)
