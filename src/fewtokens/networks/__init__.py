"""Complete networks of the papers: built from a preset name, saved to and loaded from folders."""

from fewtokens.networks.base import Model, make_config, read_config
from fewtokens.networks.presets import PRESETS, SIZES, build, build_on_meta, names, preset
from fewtokens.networks.saved import KINDS, describe, is_saved, load, preset_kind, read_meta
from fewtokens.networks.vit import VisionConfig, VisionTransformer
from fewtokens.networks.x2plus1d import X2plus1d, X2plus1dConfig

__all__ = [
    "KINDS", "PRESETS", "SIZES", "Model", "VisionConfig", "VisionTransformer", "X2plus1d", "X2plus1dConfig",
    "build", "describe", "is_saved", "load", "make_config", "read_meta", "names", "build_on_meta", "preset",
    "preset_kind", "read_config",
]  # fmt: skip
