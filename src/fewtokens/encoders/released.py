"""Encoders out of released training checkpoints: `{"model": ...}` files of MAE, SiamMAE, RSP, CropMAE, ToBo, DINO.

Their names are timm's. A decoder, a momentum teacher, a head, an optimizer and the settings of the run may be there or
not; the encoder is what is read. Files are unpickled with `weights_only=True`, which runs no code.
"""

from __future__ import annotations

import argparse
import pathlib
import pickle
import re
import zipfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fewtokens.encoders.config import ViTConfig
from fewtokens.encoders.vit import ViT
from fewtokens.encoders.weights import check_tensors, count_blocks, filled, read_tensors

SUFFIXES = (".pth", ".pt", ".ckpt", ".bin", ".safetensors")
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
_OURS = re.compile(r"(class_token|class_position|positions|patches\.|norm_last\.|blocks\.\d+\.(norm|attention|mlp))")


def load_released(path: str | Path) -> ViT:
    """Our ViT with the encoder of a released checkpoint, float32, in eval mode; frames are normalized as ImageNet's.

    Args:
        path: .pth, .pt, .ckpt, .bin or .safetensors, tensors at the top or under "model", "state_dict", "teacher".

    Raises:
        ValueError: not such a file, code in it, or tensors that make no ViT; one line that says which.
    """
    path = Path(path)
    theirs = read_tensors([path]) if path.suffix == ".safetensors" else _unpickled(path)
    state: dict[str, Tensor] = {}
    for name, value in theirs.items():
        if not isinstance(name, str) or not isinstance(value, Tensor):
            continue
        for pattern, replacement in _NAMES:
            name = re.sub(pattern, replacement, name)
        if _OURS.match(name):
            state[name] = value
    missing = [name for name in ("patches.weight", "positions", "class_token", "blocks.0.mlp.fc1.weight")
               if name not in state]  # fmt: skip
    if missing:
        raise ValueError(f"{path}: no vision transformer under timm's names; it lacks {', '.join(missing)}")
    check_tensors(state, str(path))
    patches, positions, fc1 = (state[name] for name in ("patches.weight", "positions", "blocks.0.mlp.fc1.weight"))
    if patches.ndim != 4 or positions.ndim < 2 or fc1.ndim != 2 or 0 in patches.shape:
        raise ValueError(
            f"{path}: patches of the shape {list(patches.shape)} with positions of {list(positions.shape)} are no "
            "vision transformer's"
        )
    state["class_token"] = state["class_token"].flatten()
    positions = positions.flatten(0, -2)
    side = round((len(positions) - 1) ** 0.5) if len(positions) > 1 else 0
    if side < 1 or side * side != len(positions) - 1:
        raise ValueError(f"{path}: {len(positions)} positions are not a class token's and those of a square")
    state["class_position"], state["positions"] = positions[0], positions[1:].unflatten(0, (side, side))
    dim, patch = len(patches), patches.shape[-1]
    # timm's heads have 64 channels, but for ViT-H, which has 16 of 80.
    config = ViTConfig(
        dim=dim,
        depth=count_blocks(state, str(path)),
        num_heads=16 if dim == 1280 else max(1, dim // 64),
        patch_size=patch,
        image_size=(side * patch, side * patch),
        mlp_dim=len(fc1),
        qkv_bias="blocks.0.attention.qkv.bias" in state,
        norm_last="norm_last.weight" in state,
    )
    return filled(config, state, "none", f"{path}: is no plain vision transformer")


def _unpickled(path: Path) -> dict[Any, Any]:
    _check_zip(path)
    try:
        # The settings of the run are beside the weights in all of these: plain values and paths in a Namespace.
        with torch.serialization.safe_globals([argparse.Namespace, pathlib.PosixPath]):
            said = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch's unpickler says of a damaged file whatever it stumbles over
        reason = _reason(error)
        if isinstance(error, pickle.UnpicklingError):
            raise ValueError(f"{path}: holds more than tensors, and such files can run any code ({reason})") from None
        raise ValueError(f"{path}: not a checkpoint that can be read ({reason}); was it cut short?") from None
    for name in _NESTED:
        if isinstance(said, dict) and isinstance(said.get(name), dict):
            said = said[name]
    if not isinstance(said, dict):
        raise ValueError(f"{path}: holds a {type(said).__name__}, not named tensors")
    return said


def _reason(error: Exception) -> str:
    """What torch says, without its advice to read the file all the same."""
    said = " ".join(str(error).split()).rpartition("WeightsUnpickler error: ")[2].partition(" Please use ")[0]
    return said.partition(" Check the documentation")[0][:200].strip() or type(error).__name__


def _check_zip(path: Path) -> None:
    """Raises a ValueError for an archive that unpacks to more than it is: torch does not compress what it saves."""
    try:
        if not zipfile.is_zipfile(path):
            return
        with zipfile.ZipFile(path) as archive:
            unpacked = sum(entry.file_size for entry in archive.infolist())
    except Exception as error:  # a damaged directory of an archive
        raise ValueError(f"{path}: not a checkpoint that can be read ({error}); was it cut short?") from None
    if unpacked > 2 * path.stat().st_size + (1 << 20):
        raise ValueError(f"{path}: unpacks to {unpacked} bytes from {path.stat().st_size}; torch saves no such files")
