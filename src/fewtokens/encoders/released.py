"""Loads encoders from released training checkpoints: `{"model": ...}` files of MAE, SiamMAE, RSP, CropMAE, ToBo, DINO.

Tensor names are those of timm. Only the encoder is read; a decoder, momentum teacher, head, optimizer and the settings
of the run are ignored.
"""

from __future__ import annotations

import re
from pathlib import Path

from torch import Tensor

from fewtokens.core import checkpoint
from fewtokens.core.checkpoint import read_checkpoint
from fewtokens.encoders.config import ViTConfig
from fewtokens.encoders.vit import ViT
from fewtokens.encoders.weights import build_vit, check_tensors, count_blocks, read_tensors

SUFFIXES = (*checkpoint.SUFFIXES, ".safetensors")
_NESTED = ("model", "state_dict", "teacher")
_NAMES = (
    (r"^((module|backbone|encoder|base_encoder)\.)+", ""),
    (r"^cls_token$", "class_token"),
    (r"^pos_embed$", "positions"),
    (r"^patch_embed\.proj\.", "patches."),
    (r"^norm\.", "norm_last."),
    (r"^(blocks\.\d+)\.attn\.qkv\.", r"\1.attention.qkv."),
    (r"^(blocks\.\d+)\.attn\.proj\.", r"\1.attention.out."),
)
_ENCODER_NAMES = re.compile(
    r"(class_token|class_position|positions|patches\.|norm_last\.|blocks\.\d+\.(norm|attention|mlp))"
)


def load_released(path: str | Path) -> ViT:
    """Loads the encoder of a released checkpoint as a `ViT`, float32, in eval mode; it expects ImageNet normalization.

    Args:
        path: .pth, .pt, .ckpt, .bin or .safetensors, with tensors at the top level or under "model", "state_dict" or
            "teacher".

    Raises:
        ValueError: not a checkpoint, it contains code, or its tensors are not those of a ViT; one line.
    """
    path = Path(path)
    tensors = read_tensors([path]) if path.suffix == ".safetensors" else read_checkpoint(path, _NESTED)
    state: dict[str, Tensor] = {}
    for name, value in tensors.items():
        if not isinstance(name, str) or not isinstance(value, Tensor):
            continue
        for pattern, replacement in _NAMES:
            name = re.sub(pattern, replacement, name)
        if _ENCODER_NAMES.match(name):
            state[name] = value
    missing = [name for name in ("patches.weight", "positions", "class_token", "blocks.0.mlp.fc1.weight")
               if name not in state]  # fmt: skip
    if missing:
        raise ValueError(
            f"{path}: not a vision transformer with the tensor names of timm; missing: {', '.join(missing)}"
        )
    check_tensors(state, str(path))
    patches, positions, fc1 = (state[name] for name in ("patches.weight", "positions", "blocks.0.mlp.fc1.weight"))
    if patches.ndim != 4 or positions.ndim < 2 or fc1.ndim != 2 or 0 in patches.shape:
        raise ValueError(
            f"{path}: not a vision transformer (patch embedding {list(patches.shape)}, positions "
            f"{list(positions.shape)})"
        )
    state["class_token"] = state["class_token"].flatten()
    positions = positions.flatten(0, -2)
    side = round((len(positions) - 1) ** 0.5) if len(positions) > 1 else 0
    if side < 1 or side * side != len(positions) - 1:
        raise ValueError(
            f"{path}: positions must be one of a class token and those of a square grid, got {len(positions)}"
        )
    state["class_position"], state["positions"] = positions[0], positions[1:].unflatten(0, (side, side))
    dim, patch = len(patches), patches.shape[-1]
    # Heads in timm have 64 channels, except for ViT-H (16 heads of 80).
    config = ViTConfig(
        dim=dim,
        depth=count_blocks(state, str(path)),
        num_heads=16 if dim == 1280 else max(1, dim // 64),
        patch_size=patch,
        image_size=(side * patch, side * patch),
        mlp_dim=len(fc1),
        qkv_bias="blocks.0.attention.qkv.bias" in state,
        norm_last="norm_last.weight" in state,
        position_offset=0.1,
    )
    return build_vit(config, state, "none", f"{path}: not a standard vision transformer")
