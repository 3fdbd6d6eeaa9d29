"""Networks by name, see `fewtokens.core.network_names`."""

from __future__ import annotations

from typing import Any

import torch

from fewtokens.core.network_names import PRESETS, SIZES, parse_name
from fewtokens.networks.base import Model, make_config
from fewtokens.networks.vit import VisionTransformer
from fewtokens.networks.x2plus1d import X2plus1d


def names() -> list[str]:
    """Returns the names of the listed presets."""
    return list(PRESETS)


def preset(name: str) -> tuple[type[Model], dict[str, Any]]:
    """Returns the type of a network and its settings.

    Raises:
        ValueError: unknown name; suggests similar ones.
    """
    match = parse_name(name)
    if match is None:
        return X2plus1d, {"module": "conv2d+tokenlearner" if name.startswith("token") else "conv2d+conv1d"}
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
        if match["attention"] in ("factorized_self", "factorized_dot"):
            settings["head"] = "gap"
    if match["tokens"]:
        settings |= {"learner": f"tokenlearner('{match['tokens']}/frame')", "at": int(match["at"])}
        settings["fuser"] = "fuser" if match["fuser"] else ""
        if name == "tokenlearner_vit_b16_16at9":
            settings["learner"] = "tokenlearner('16/frame', version='1.1')"
    return VisionTransformer, settings


def build(name: str, **changes: Any) -> Model:
    """Builds a randomly initialized network from a preset.

    Args:
        name: preset name.
        changes: settings that override the preset, such as num_classes=10 or image_size=(96, 96).
    """
    kind, settings = preset(name)
    return kind(make_config(kind, settings | changes, name))


def build_on_meta(name: str, **changes: Any) -> Model:
    """Builds a network on the meta device, without memory for its parameters, to count its cost."""
    with torch.device("meta"):
        return build(name, **changes)
