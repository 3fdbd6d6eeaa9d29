"""Draws objects and joints over frames."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw
from torch import Tensor

from fewtokens.data.masks import palette

_TINT = 0.5


def overlay_objects(frames: Tensor, masks: Tensor, truth: Tensor | None = None) -> Tensor:
    """Tints each object in its color of the DAVIS palette and outlines the ground truth in white.

    Args:
        frames: uint8 [T,3,H,W].
        masks: predicted objects, uint8 [T,H,W] of the same size, 0 = background.
        truth: ground truth, in the same form.

    Returns:
        Frames uint8 [T,3,H,W].
    """
    colors = torch.from_numpy(palette().copy()).float()[masks.long().cpu()].permute(0, 3, 1, 2)
    image = frames.cpu().float()
    image = torch.where((masks > 0)[:, None].cpu(), image * (1 - _TINT) + _TINT * colors, image)
    if truth is not None:
        image = image.masked_fill(_outline(truth.cpu())[:, None], 255)
    return image.round().byte()


def overlay_joints(frames: Tensor, joints: Tensor, truth: Tensor | None = None) -> Tensor:
    """Draws each joint as a colored disk, and its ground truth as a white ring.

    Args:
        frames: uint8 [T,3,H,W].
        joints: predicted joints [T,J,2] as (x,y) in pixels; those with a negative coordinate are skipped.
        truth: ground truth, in the same form.

    Returns:
        Frames uint8 [T,3,H,W].
    """
    colors = [tuple(color) for color in palette()[1:].tolist()]
    radius = max(2, round(min(frames.shape[2:]) / 60))
    outputs = []
    for index, frame in enumerate(frames.cpu().permute(0, 2, 3, 1).contiguous().numpy()):
        image = Image.fromarray(frame)
        pen = ImageDraw.Draw(image)
        for points, ring in ((truth, True), (joints, False)):
            for joint, (x, y) in enumerate([] if points is None else points[index].tolist()):
                if x < 0 or y < 0:
                    continue
                r = radius + ring
                box = (x - r, y - r, x + r, y + r)
                pen.ellipse(box, **({"outline": (255, 255, 255)} if ring else {"fill": colors[joint]}))
        outputs.append(torch.from_numpy(np.array(image)).permute(2, 0, 1))
    return torch.stack(outputs)


def _outline(masks: Tensor) -> Tensor:
    """Pixels of a mask next to a pixel with another value, bool [T,H,W]."""
    edge = torch.zeros_like(masks, dtype=torch.bool)
    for axis in (1, 2):
        n = masks.shape[axis]
        differ = masks.narrow(axis, 0, n - 1) != masks.narrow(axis, 1, n - 1)
        edge.narrow(axis, 0, n - 1).logical_or_(differ)
        edge.narrow(axis, 1, n - 1).logical_or_(differ)
    return edge


def fit_height(rows: Sequence[Tensor], height: int = 270) -> Tensor:
    """Stacks frames uint8 [n,3,H,W] of several sizes: resized to one height, padded with white to the widest."""
    small = [
        F.interpolate(
            row.float(), (height, max(1, round(height * row.shape[3] / row.shape[2]))), mode="bilinear", antialias=True
        )
        for row in rows
    ]
    width = max(row.shape[3] for row in small)
    padded = [F.pad(row, (0, width - row.shape[3]), value=255) for row in small]
    return torch.cat(padded).round().clamp(0, 255).byte()
