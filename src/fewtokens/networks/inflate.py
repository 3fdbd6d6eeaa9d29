"""Initializes a video network from the weights of an image network (ViViT, arXiv 2103.15691, section 3.4)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from fewtokens import networks as models
from fewtokens.encoders.frames import IMAGENET_MEAN, IMAGENET_STD
from fewtokens.encoders.vit import ViT
from fewtokens.encoders.weights import load_vit
from fewtokens.networks.pretrained import is_pretrained, load_pretrained_vit
from fewtokens.networks.vit import VisionConfig, VisionTransformer

INFLATION = ("central", "average")
POSITIONS = ("tile", "resize", "resize_tile")


def initialize_from(
    model: VisionTransformer, source: str | Path | VisionTransformer, *, how: str = "central", positions: str = "tile"
) -> dict[str, list[str]]:
    """Initializes a ViT or ViViT from the weights of an image ViT, in place.

    Args:
        model: the network. Blocks, patch embedding, positions, last norm and class token are copied if both networks
            have them; learners, fusers, temporal blocks and the head keep their random initialization.
        source: a model, or a folder saved by `save_pretrained` (also of pre-training) or in the format of transformers
            (ViT, DINOv2). Checkpoints of scenic (Flax) are not supported.
        how: inflation of the patch kernel to a tubelet of t frames: "central" places it at index t // 2 (the second of
            two), zeros elsewhere; "average" repeats it in every frame, divided by t.
        positions: "tile" repeats the positions of the image in every frame (grids must be equal); "resize" interpolates
            the full [T,H,W]; "resize_tile" interpolates in space (bilinear), then repeats in every frame.

    Returns:
        Names of tensors: {"copied": from the source, "initialized": at random, "unused": of the source, not copied}.

    Raises:
        ValueError: names the tensors whose shapes do not fit, or the blocks of another type.
    """
    if how not in INFLATION:
        raise ValueError(f"how must be one of {', '.join(INFLATION)}, got {how!r}")
    if positions not in POSITIONS:
        raise ValueError(f"positions must be one of {', '.join(POSITIONS)}, got {positions!r}")
    weights, label = _read_source(source)
    state = model.state_dict()
    kernel = weights["patches.weight"]
    if kernel.ndim == 5 and kernel.shape[2] == 1:
        kernel = kernel[:, :, 0]
    if kernel.ndim == 4:
        kernel = inflate(kernel, model.config.tubelet_size, how)
    weights["patches.weight"] = kernel
    if "patches.bias" not in weights:
        weights["patches.bias"] = torch.zeros(len(kernel))
    grid = weights["positions"]
    weights["positions"] = expand_positions(
        grid[None] if grid.ndim == 3 else grid, model.config.position_grid, positions
    )
    copied = {}
    for name, value in weights.items():
        if name not in state or name.startswith(("head.", "learners.", "fusers.")):
            continue
        if state[name].shape != value.shape:
            raise ValueError(f"{label}: {name} must have the shape {list(state[name].shape)}, got {list(value.shape)}")
        copied[name] = value
    if extra := sorted(name for name in weights.keys() - copied.keys() if name.startswith("blocks.")):
        raise ValueError(
            f"{label}: blocks have parts that this model does not have ({', '.join(extra[:3])}); build a matching "
            "model with `matching_config`"
        )
    if lost := sorted(name for name in weights.keys() - copied.keys() if name.startswith(("norm_first", "norm_last"))):
        raise ValueError(f"{label}: this model has no {lost[0]}; build a matching model with `matching_config`")
    if not any(name.startswith("blocks.") for name in copied):
        raise ValueError(f"{label}: no block fits this model")
    required = {name for name in state if name.startswith("blocks.") and "time" not in name}
    if missing := sorted(required - copied.keys()):
        raise ValueError(f"{label}: missing {', '.join(missing[:3])}; it has fewer blocks, or blocks of another type")
    model.load_state_dict(state | copied)
    return {
        "copied": sorted(copied),
        "initialized": sorted(set(state) - set(copied)),
        "unused": sorted(set(weights) - set(copied)),
    }


# The settings that determine the parameters of blocks and norms, and what they compute.
BLOCK_SETTINGS = (
    "activation", "layer_scale", "eps", "qkv_bias", "patch_bias", "qk_norm", "norm_first", "norm_last", "gated",
)  # fmt: skip


def matching_config(source: str | Path, **changes: Any) -> VisionConfig:
    """Returns the config of a network whose blocks match a pre-trained or transformers encoder, with `changes`."""
    vit, (mean, std) = _image_vit(source)
    config = vit.config
    _, rows, columns = config.grid
    names = ("dim", "depth", "num_heads", "mlp_dim", "patch_size", "num_registers", *BLOCK_SETTINGS)
    settings: dict[str, Any] = {name: getattr(config, name) for name in names}
    settings["image_size"] = (rows * config.patch_size, columns * config.patch_size)
    settings |= {"head": "token" if config.class_token else "gap", "mean": tuple(mean), "std": tuple(std)}
    return VisionConfig(**(settings | changes))


def inflate(kernel: Tensor, frames: int, how: str) -> Tensor:
    """Inflates a patch kernel [C,3,p,p] to `frames` frames, [C,3,t,p,p]."""
    if how == "average":
        return kernel[:, :, None].expand(-1, -1, frames, -1, -1) / frames
    inflated = kernel.new_zeros(*kernel.shape[:2], frames, *kernel.shape[2:])
    inflated[:, :, frames // 2] = kernel
    return inflated


def expand_positions(positions: Tensor, grid: Sequence[int], how: str) -> Tensor:
    """Expands positions [T,H,W,C] of an image (T=1) or clip to another grid."""
    T, H, W = grid
    if how == "tile":
        if positions.shape[1:3] != (H, W) or T % len(positions):
            raise ValueError(
                f"positions of {list(positions.shape[:3])} cannot be tiled to {list(grid)}; use positions='resize_tile'"
            )
        return positions.repeat(T // len(positions), 1, 1, 1)
    resized = positions.permute(3, 0, 1, 2)[None].float()
    size = (T, H, W) if how == "resize" else (len(positions), H, W)
    resized = F.interpolate(resized, size, mode="trilinear", align_corners=False)[0].permute(1, 2, 3, 0)
    if how == "resize":
        return resized
    if T % len(resized):
        raise ValueError(f"positions of {len(resized)} frames cannot be tiled to {T}; use positions='resize'")
    return resized.repeat(T // len(resized), 1, 1, 1)


def _read_source(source: str | Path | VisionTransformer) -> tuple[dict[str, Tensor], str]:
    """Returns the state dict of a source, and its name for error messages."""
    if isinstance(source, VisionTransformer):
        return dict(source.state_dict()), "the source model"
    if models.is_saved(source):
        model = models.load(source)
        if not isinstance(model, VisionTransformer):
            raise ValueError(f"{source}: must be a ViT, got a {model.kind}")
        return dict(model.state_dict()), str(source)
    return dict(_image_vit(source)[0].state_dict()), str(source)


def _image_vit(folder: str | Path) -> tuple[ViT, tuple[Any, Any]]:
    """Returns a ViT and the mean and std of its normalization."""
    if is_pretrained(folder):
        return load_pretrained_vit(folder), (IMAGENET_MEAN, IMAGENET_STD)
    return load_vit(Path(folder))
