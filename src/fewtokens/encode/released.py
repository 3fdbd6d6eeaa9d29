"""Encoders out of released training checkpoints: `{"model": ...}` files of MAE, SiamMAE, RSP, CropMAE, ToBo, DINO.

Their names are timm's. A decoder, a momentum teacher or a head may be there or not; the encoder is what is read. Files
are unpickled with `weights_only=True`, which runs no code.
"""

from __future__ import annotations

import pickle
import re
import zipfile
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from fewtokens import files
from fewtokens.encode.vit import ViT, ViTConfig

SUFFIXES = (".pth", ".pt", ".ckpt", ".bin", ".safetensors")
_NESTED = ("model", "state_dict", "teacher")
_NAMES = (
    (r"^(module|backbone|encoder)\.", ""),
    (r"^cls_token$", "class_token"),
    (r"^pos_embed$", "positions"),
    (r"^patch_embed\.proj\.", "patches."),
    (r"^norm\.", "norm_last."),
    (r"^(blocks\.\d+)\.attn\.qkv\.", r"\1.attention.qkv."),
    (r"^(blocks\.\d+)\.attn\.proj\.", r"\1.attention.out."),
)
_OURS = re.compile(r"(class_token|class_position|positions|patches\.|norm_last\.|blocks\.\d+\.(norm|attention|mlp))")


def load_released(path: str | Path) -> ViT:
    """Our ViT with the encoder of a released checkpoint, float32, in eval mode; frames are normalised as ImageNet's.

    Args:
        path: .pth, .pt, .ckpt, .bin or .safetensors, tensors at the top or under "model", "state_dict", "teacher".

    Raises:
        ValueError: not such a file, code in it, or tensors that make no ViT; one line that says which.
    """
    path = Path(path)
    theirs = _read(path)
    state: dict[str, Tensor] = {}
    for name, value in theirs.items():
        for pattern, replacement in _NAMES:
            name = re.sub(pattern, replacement, name)
        if _OURS.match(name) and isinstance(value, Tensor):
            state[name] = value.float()
    missing = [name for name in ("patches.weight", "positions", "class_token", "blocks.0.mlp.fc1.weight")
               if name not in state]  # fmt: skip
    if missing:
        raise ValueError(f"{path}: no vision transformer under timm's names; it lacks {', '.join(missing)}")
    width = state["patches.weight"].shape[0]
    state["class_token"] = state["class_token"].flatten()
    positions = state["positions"].flatten(0, -2)
    side = round((len(positions) - 1) ** 0.5)
    if side * side != len(positions) - 1:
        raise ValueError(f"{path}: {len(positions)} positions are not a class token's and those of a square")
    state["class_position"], state["positions"] = positions[0], positions[1:].unflatten(0, (side, side))
    # timm's heads have 64 channels, but for ViT-H, which has 16 of 80.
    config = ViTConfig(
        width=width,
        depth=1 + max(int(name.split(".")[1]) for name in state if name.startswith("blocks.")),
        heads=16 if width == 1280 else max(1, width // 64),
        patch=state["patches.weight"].shape[-1],
        positions=(side, side),
        hidden=state["blocks.0.mlp.fc1.weight"].shape[0],
        qkv_bias="blocks.0.attention.qkv.bias" in state,
        norm_last="norm_last.weight" in state,
    )
    with torch.device("meta"):
        vit = ViT(config, proportional="none")
    files.check_fit(vit.state_dict(), state, f"{path}: is no plain vision transformer")
    vit.load_state_dict(state, assign=True)
    return vit.eval()


def _read(path: Path) -> dict[str, Any]:
    try:
        if path.suffix == ".safetensors":
            return dict(load_file(path))
        said = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        reason = str(error).strip().splitlines()[0][:200]
        raise ValueError(f"{path}: holds more than tensors, and such files can run any code ({reason})") from None
    except (SafetensorError, OSError, EOFError, RuntimeError, zipfile.BadZipFile) as error:
        raise ValueError(f"{path}: not a checkpoint that can be read ({error}); was it cut short?") from None
    for name in _NESTED:
        if isinstance(said, dict) and isinstance(said.get(name), dict):
            said = said[name]
    if not isinstance(said, dict):
        raise ValueError(f"{path}: holds a {type(said).__name__}, not named tensors")
    return said
