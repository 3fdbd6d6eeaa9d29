"""A video network that begins with the weights of an image network (ViViT, arXiv 2103.15691, section 3.4)."""

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
    """Fills a ViT or ViViT with the weights of an image ViT, in place.

    Args:
        model: what is filled. Its blocks, patch embedding, positions, last norm and class token are taken over
            where both have them; learners, fusers, temporal blocks and the head stay as they were drawn.
        source: a folder of ours (`save_pretrained`, also of a pre-training) or in the layout of transformers (ViT,
            DINOv2), or a model. Checkpoints of scenic (flax) are not read.
        how: the patch kernel over a tubelet of t frames. "central": all of it at index t // 2, the second of
            two; "average": in every frame, divided by t.
        positions: "tile": the image's positions at every frame, whose grids must be equal; "resize": the whole
            [T,H,W] by interpolation; "resize_tile": in space by interpolation (bilinear), then at every frame.

    Returns:
        {"taken": names, "drawn": names left as they were, "unused": names of the source not taken}.

    Raises:
        ValueError: shapes that do not fit, blocks of another kind, named.
    """
    if how not in INFLATION:
        raise ValueError(f"how must be one of {', '.join(INFLATION)}, got {how!r}")
    if positions not in POSITIONS:
        raise ValueError(f"positions must be one of {', '.join(POSITIONS)}, got {positions!r}")
    theirs, says = _source(source)
    ours = model.state_dict()
    kernel = theirs["patches.weight"]
    if kernel.ndim == 5 and kernel.shape[2] == 1:
        kernel = kernel[:, :, 0]
    if kernel.ndim == 4:
        kernel = inflate(kernel, model.config.tubelet_size, how)
    theirs["patches.weight"] = kernel
    if "patches.bias" not in theirs:
        theirs["patches.bias"] = torch.zeros(len(kernel))
    grid = theirs["positions"]
    theirs["positions"] = spread(grid[None] if grid.ndim == 3 else grid, model.config.position_grid, positions)
    taken = {}
    for name, value in theirs.items():
        if name not in ours or name.startswith(("head.", "learners.", "fusers.")):
            continue
        if ours[name].shape != value.shape:
            raise ValueError(
                f"{says}: {name} has the shape {list(value.shape)}, this model needs {list(ours[name].shape)}"
            )
        taken[name] = value
    if extra := sorted(name for name in theirs.keys() - taken.keys() if name.startswith("blocks.")):
        raise ValueError(
            f"{says}: has parts that this model lacks ({', '.join(extra[:3])}), so its blocks would compute something "
            "else; build a model by `like`"
        )
    if not any(name.startswith("blocks.") for name in taken):
        raise ValueError(f"{says}: no block of it fits this model")
    wanted = {name for name in ours if name.startswith("blocks.") and "time" not in name}
    if missing := sorted(wanted - taken.keys()):
        raise ValueError(f"{says}: lacks {', '.join(missing[:3])}; it has fewer blocks, or blocks of another kind")
    model.load_state_dict(ours | taken)
    return {
        "taken": sorted(taken),
        "drawn": sorted(set(ours) - set(taken)),
        "unused": sorted(set(theirs) - set(taken)),
    }


def like(source: str | Path, **changes: Any) -> VisionConfig:
    """The config of a network whose blocks fit a pre-trained encoder or the layout of transformers, with changes."""
    vit, (mean, std) = _image_vit(source)
    shape = vit.config
    _, rows, columns = shape.grid
    own = ("dim", "depth", "num_heads", "mlp_dim", "patch_size", "activation", "layer_scale", "eps")
    settings: dict[str, Any] = {name: getattr(shape, name) for name in own}
    settings["image_size"] = (rows * shape.patch_size, columns * shape.patch_size)
    settings |= {"head": "token" if shape.class_token else "gap", "mean": tuple(mean), "std": tuple(std)}
    return VisionConfig(**(settings | changes))


def inflate(kernel: Tensor, frames: int, how: str) -> Tensor:
    """A patch kernel [C,3,p,p] over so many frames, [C,3,t,p,p]."""
    if how == "average":
        return kernel[:, :, None].expand(-1, -1, frames, -1, -1) / frames
    deep = kernel.new_zeros(*kernel.shape[:2], frames, *kernel.shape[2:])
    deep[:, :, frames // 2] = kernel
    return deep


def spread(positions: Tensor, grid: Sequence[int], how: str) -> Tensor:
    """Positions [T,H,W,C] of an image (T=1) or clip for another grid."""
    T, H, W = grid
    if how == "tile":
        if positions.shape[1:3] != (H, W) or T % len(positions):
            raise ValueError(
                f"positions of {list(positions.shape[:3])} cannot be tiled to {list(grid)}; "
                "take positions='resize_tile'"
            )
        return positions.repeat(T // len(positions), 1, 1, 1)
    moved = positions.permute(3, 0, 1, 2)[None].float()
    size = (T, H, W) if how == "resize" else (len(positions), H, W)
    moved = F.interpolate(moved, size, mode="trilinear", align_corners=False)[0].permute(1, 2, 3, 0)
    if how == "resize":
        return moved
    if T % len(moved):
        raise ValueError(f"positions of {len(moved)} frames cannot be tiled to {T}; take positions='resize'")
    return moved.repeat(T // len(moved), 1, 1, 1)


def _source(source: str | Path | VisionTransformer) -> tuple[dict[str, Tensor], str]:
    """State by our names, and what to call it in an error."""
    if isinstance(source, VisionTransformer):
        return dict(source.state_dict()), "the source model"
    if models.is_saved(source):
        model = models.load(source)
        if not isinstance(model, VisionTransformer):
            raise ValueError(f"{source}: holds a {model.kind}, not a ViT")
        return dict(model.state_dict()), str(source)
    return dict(_image_vit(source)[0].state_dict()), str(source)


def _image_vit(folder: str | Path) -> tuple[ViT, tuple[Any, Any]]:
    """A ViT and the mean and deviation of its pixels."""
    if is_pretrained(folder):
        return load_pretrained_vit(folder), (IMAGENET_MEAN, IMAGENET_STD)
    return load_vit(Path(folder))
