"""Reads released weights of Emu3's tokenizer, in the format of transformers or of the authors."""

from __future__ import annotations

import re
from functools import partial
from typing import Any, TypedDict

import torch
from torch import Tensor

from fewtokens.core.plain import conform
from fewtokens.tokenizers.released.convert import codebook, convert
from fewtokens.tokenizers.tokenizer import Tokenizer

# The authors' names of settings and of tensors, and those of transformers.
_SETTINGS = {"ch": "base_channels", "ch_mult": "channel_multiplier", "z_channels": "latent_channels",
             "double_z": "double_latent"}  # fmt: skip
_NAMES = (
    (r"^encoder\.down\.", "encoder.down_block.down."),
    (r"^decoder\.up\.", "decoder.up_block.up."),
    (r"\.mid\.attn_1\.norm\.", ".middle_block.attn_norm."),
    (r"\.mid\.", ".middle_block."),
    (r"\.attn\.(\d+)\.norm\.", r".attn_norms.\1."),
    (r"\.(attn\.\d+|attn_1)\.([qkv])\.", r".\1.\2_proj."),
    (r"\.(attn\.\d+|attn_1)\.proj_out\.", r".\1.out_proj."),
)
_CODEBOOK = "quantize.embedding.weight"


class _Config(TypedDict, total=False):
    codebook_size: int
    embed_dim: int
    latent_channels: int
    double_latent: bool
    in_channels: int
    out_channels: int
    temporal_downsample_factor: int
    base_channels: int
    channel_multiplier: list[int]
    num_res_blocks: int
    attn_resolutions: list[int]
    num_attention_heads: int


def load_emu3(content: dict[str, Any], tensors: dict[str, Tensor], where: str) -> Tokenizer:
    """Builds a tokenizer from the config and the tensors of Emu3's tokenizer (arXiv 2409.18869).

    A number of frames that is not a multiple of 4, such as an image, is padded with the last frame.

    Args:
        content: of config.json, in the format of transformers (`Emu3VQVAE`) or of the authors (`Emu3VisionVQModel`).
        tensors: by name, in the same format.
        where: of the messages.

    Raises:
        ValueError: the config is of another network, or the tensors do not fit; the message starts with `where`.
    """
    tokenizer = Tokenizer.from_spec(_spec(content, where))
    theirs = {_rename(name): value for name, value in tensors.items()}
    rules = codebook("pipeline.methods.0", _CODEBOOK)
    for own in tokenizer.state_dict().keys() - rules.keys():
        name = own.removeprefix("pipeline.encoder.").removeprefix("decoder.")
        # The authors project by convolutions.
        rules[own] = ((name,), partial(torch.flatten, start_dim=1)) if name.endswith("_proj.weight") else name
    convert(tokenizer, rules, theirs, where)
    return tokenizer


def _spec(content: dict[str, Any], where: str) -> str:
    """The spec of the tokenizer that a config.json describes."""
    config = conform({_SETTINGS.get(name, name): value for name, value in content.items()}, _Config, where)
    channels = config.get("embed_dim", 4)
    fixed = {"latent_channels": channels, "double_latent": False, "in_channels": 3, "out_channels": 3,
             "num_attention_heads": 1}  # fmt: skip
    for name, value in fixed.items():
        if config.get(name, 4 if name == "latent_channels" else value) != value:
            raise ValueError(f"{where}: {name} must be {value}, got {config[name]}")
    shared = (
        f"width={config.get('base_channels', 256)}, mult={tuple(config.get('channel_multiplier', (1, 2, 2, 4)))}, "
        f"depth={config.get('num_res_blocks', 2)}, attention={tuple(config.get('attn_resolutions', (3,)))}, "
        f"frames={config.get('temporal_downsample_factor', 4)}"
    )
    quantizer = f"vq({config.get('codebook_size', 32768)}, code_dim={channels}, cosine=False, restart=0.0)"
    return f"emu3({channels}, {shared}) | {quantizer} > emu3({shared})"


def _rename(name: str) -> str:
    """The name in transformers of a tensor of the authors; names of transformers remain."""
    for pattern, replacement in _NAMES:
        name = re.sub(pattern, replacement, name)
    return name
