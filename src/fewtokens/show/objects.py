"""Objects and joints drawn over frames."""

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
    """Frames with their objects tinted in the colours of DAVIS, and the outline of the truth in white; uint8 [T,3,H,W].

    Args:
        frames: uint8 [T,3,H,W]. masks: uint8 [T,H,W] of the same size, 0 = background. truth: likewise.
    """
    colours = torch.from_numpy(palette().copy()).float()[masks.long().cpu()].permute(0, 3, 1, 2)
    image = frames.cpu().float()
    image = torch.where((masks > 0)[:, None].cpu(), image * (1 - _TINT) + _TINT * colours, image)
    if truth is not None:
        image = image.masked_fill(_outline(truth.cpu())[:, None], 255)
    return image.round().byte()


def overlay_joints(frames: Tensor, joints: Tensor, truth: Tensor | None = None) -> Tensor:
    """Frames with each joint as a disk of its own colour, and the truth as a white ring; uint8 [T,3,H,W].

    Args:
        frames: uint8 [T,3,H,W]. joints: [T,J,2] as (x,y) in pixels; negative ones are not drawn. truth: likewise.
    """
    colours = [tuple(colour) for colour in palette()[1:].tolist()]
    radius = max(2, round(min(frames.shape[2:]) / 60))
    drawn = []
    for number, frame in enumerate(frames.cpu().permute(0, 2, 3, 1).contiguous().numpy()):
        image = Image.fromarray(frame)
        draw = ImageDraw.Draw(image)
        for places, wide in ((truth, True), (joints, False)):
            for joint, (x, y) in enumerate([] if places is None else places[number].tolist()):
                if x < 0 or y < 0:
                    continue
                r = radius + wide
                box = (x - r, y - r, x + r, y + r)
                draw.ellipse(box, **({"outline": (255, 255, 255)} if wide else {"fill": colours[joint]}))
        drawn.append(torch.from_numpy(np.array(image)).permute(2, 0, 1))
    return torch.stack(drawn)


def _outline(masks: Tensor) -> Tensor:
    """Pixels of a mask beside a pixel of another number, bool [T,H,W]."""
    edge = torch.zeros_like(masks, dtype=torch.bool)
    for axis in (1, 2):
        n = masks.shape[axis]
        differ = masks.narrow(axis, 0, n - 1) != masks.narrow(axis, 1, n - 1)
        edge.narrow(axis, 0, n - 1).logical_or_(differ)
        edge.narrow(axis, 1, n - 1).logical_or_(differ)
    return edge


def fitted(rows: Sequence[Tensor], height: int = 270) -> Tensor:
    """Frames uint8 [n,3,H,W] of several sizes as one stack, so high and as wide as the widest; beside them white."""
    small = [
        F.interpolate(
            row.float(), (height, max(1, round(height * row.shape[3] / row.shape[2]))), mode="bilinear", antialias=True
        )
        for row in rows
    ]
    width = max(row.shape[3] for row in small)
    together = [F.pad(row, (0, width - row.shape[3]), value=255) for row in small]
    return torch.cat(together).round().clamp(0, 255).byte()
