"""Encoders: map frames to a grid of cells, one token per cell."""

from fewtokens.core.encoder import Encoder
from fewtokens.core.hub import from_hub
from fewtokens.encoders.config import ViTConfig
from fewtokens.encoders.devices import pick_device, pick_dtype
from fewtokens.encoders.load import load_encoder
from fewtokens.encoders.patches import Patches
from fewtokens.encoders.vit import ViT
from fewtokens.encoders.vit_encoder import VitEncoder

__all__ = [
    "Encoder",
    "Patches",
    "ViT",
    "ViTConfig",
    "VitEncoder",
    "from_hub",
    "load_encoder",
    "pick_device",
    "pick_dtype",
]
