"""Frames on their way into a video language model, as transformers' video processors make them, without torchvision.

All of it runs on a CPU and on uint8 until the end, because that is what decides the last bit there.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from fewtokens.core.shapes import by_shape

# Numbers of filters in preprocessor_config.json, which are Pillow's.
LANCZOS, BILINEAR, BICUBIC = 1, 2, 3
_MOST_ASPECT = 200


@dataclass
class PreparedVideo:
    """A video as a model takes it.

    Attributes:
        inputs: pixels [...] of the encoder, and what else describes the video (grids, times), by name.
        text: stands for the video in the prompt, with a placeholder for each row of features.
    """

    inputs: dict[str, Tensor] = field(default_factory=dict)
    text: str = ""

    __repr__ = by_shape


def resize(frames: Tensor, size: tuple[int, int], resample: int = BICUBIC) -> Tensor:
    """Frames uint8 [T,3,H,W] at (height, width), uint8, smoothed where they shrink.

    Raises:
        ValueError: a filter other than Lanczos, bilinear and bicubic.
    """
    if tuple(frames.shape[-2:]) == size:
        return frames
    if resample == LANCZOS:
        # Torch knows it only of late.
        pictures = [Image.fromarray(frame.permute(1, 2, 0).numpy()) for frame in frames]
        small = [np.asarray(picture.resize(size[::-1], Image.Resampling.LANCZOS)) for picture in pictures]
        return torch.from_numpy(np.stack(small)).permute(0, 3, 1, 2).contiguous()
    modes = {BILINEAR: "bilinear", BICUBIC: "bicubic"}
    if resample not in modes:
        raise ValueError(f"the model's processor resizes by the filter {resample}; only 1, 2 and 3 of Pillow are known")
    return F.interpolate(frames, size=size, mode=modes[resample], antialias=True, align_corners=False)


def square_frames(frames: Tensor, size: int, count: int = 0) -> Tensor:
    """The middle square of frames uint8 [T,3,H,W], resized so that the short side fits: [T,3,size,size].

    A video of fewer than `count` frames repeats its last one.
    """
    height, width = frames.shape[2:]
    if min(height, width) != size:
        scale = size / min(height, width)
        shape = (max(size, round(height * scale)), max(size, round(width * scale)))
        resized = F.interpolate(frames.float(), size=shape, mode="bicubic", antialias=True, align_corners=False)
        frames = resized.round().clamp(0, 255).to(torch.uint8)
    top, left = (frames.shape[2] - size) // 2, (frames.shape[3] - size) // 2
    frames = frames[:, :, top : top + size, left : left + size]
    return torch.cat([frames, frames[-1:].expand(max(0, count - len(frames)), -1, -1, -1)])


def normalize(frames: Tensor, config: Mapping[str, Any]) -> Tensor:
    """uint8 to float32, (frames * factor - mean) / std with `image_mean`, `image_std` and `rescale_factor`."""
    scale = 1.0 / config.get("rescale_factor", 1 / 255)
    mean, std = (torch.tensor(config[name])[:, None, None] * scale for name in ("image_mean", "image_std"))
    return (frames.float() - mean) / std


def fit(frames: Tensor, config: Mapping[str, Any]) -> Tensor:
    """Frames at the fixed size of a model: `size` is height and width or the short side, `crop_size` cuts the middle.

    Raises:
        ValueError: `size` says neither.
    """
    size, (height, width) = config["size"], frames.shape[-2:]
    if isinstance(size, int):
        size = {"shortest_edge": size}
    if size.get("height") and size.get("width"):
        target = (size["height"], size["width"])
    elif size.get("shortest_edge") and not size.get("longest_edge"):
        short = size["shortest_edge"]
        long = int(short * max(height, width) / min(height, width))
        target = (long, short) if width <= height else (short, long)
    else:
        raise ValueError(f"the model's processor says size {size}; height and width, or shortest_edge, are known")
    frames = resize(frames, target, config["resample"])
    if config.get("do_center_crop") and config.get("crop_size"):
        crop = config["crop_size"]
        crop = {"height": crop, "width": crop} if isinstance(crop, int) else crop
        frames = _crop(frames, crop["height"], crop["width"])
    return frames


def _crop(frames: Tensor, height: int, width: int) -> Tensor:
    """The middle [height,width], with black around if there is less."""
    missing = [max(0, wanted - here) for wanted, here in ((width, frames.shape[-1]), (height, frames.shape[-2]))]
    if any(missing):
        frames = F.pad(frames, [part for gap in missing for part in (gap // 2, (gap + 1) // 2)])
    top, left = (int((here - wanted) / 2) for here, wanted in zip(frames.shape[-2:], (height, width), strict=True))
    return frames[..., top : top + height, left : left + width]


def whole_patches(
    height: int, width: int, factor: int, least: float, most: float, frames: int = 1, whole: int | None = None
) -> tuple[int, int]:
    """The size nearest to (height, width) of whole multiples of `factor`, with `least` to `most` pixels.

    Args:
        frames: that share the budget of pixels.
        whole: frames with those that fill the last tubelet, which say whether the budget is kept; `frames` scale then.

    Raises:
        ValueError: one side is more than 200 times the other.
    """
    if max(height, width) > _MOST_ASPECT * min(height, width):
        raise ValueError(
            f"frames of {width}x{height} are too narrow for this model, which takes up to 1:{_MOST_ASPECT}"
        )
    high, wide = round(height / factor) * factor, round(width / factor) * factor
    whole = whole or frames
    if whole * high * wide > most:
        shrink = math.sqrt(frames * height * width / most)
        high, wide = (max(factor, math.floor(side / shrink / factor) * factor) for side in (height, width))
    elif whole * high * wide < least:
        grow = math.sqrt(least / (frames * height * width))
        high, wide = (math.ceil(side * grow / factor) * factor for side in (height, width))
    return high, wide


def budget(config: Mapping[str, Any]) -> tuple[float, float]:
    """Least and most pixels that a processor says, by either of its two ways.

    Raises:
        ValueError: it says none.
    """
    size = config["size"]
    least, most = config.get("min_pixels"), config.get("max_pixels")
    least = size.get("shortest_edge", size.get("min_pixels")) if least is None else least
    most = size.get("longest_edge", size.get("max_pixels")) if most is None else most
    if not least or not most:
        raise ValueError(
            f"the model's processor says size {size}; shortest_edge and longest_edge, in pixels, are known"
        )
    return least, most


def pack(frames: Tensor, patch: int, merge: int, tubelet: int) -> tuple[Tensor, tuple[int, int, int]]:
    """Frames [T,3,H,W] as patches [t*h*w, 3*tubelet*patch*patch] and (t, h, w).

    The patches that are merged into a cell lie side by side; the last frame is repeated to whole tubelets.
    """
    if missing := -len(frames) % tubelet:
        frames = torch.cat([frames, frames[-1:].expand(missing, -1, -1, -1)])
    T, C, H, W = frames.shape
    t, h, w = T // tubelet, H // patch, W // patch
    parts = frames.reshape(t, tubelet, C, h // merge, merge, patch, w // merge, merge, patch)
    # t, row and column of the cell, row and column in it, channel, frame of the tubelet, pixels
    patches = parts.permute(0, 3, 6, 4, 7, 2, 1, 5, 8)
    return patches.reshape(t * h * w, C * tubelet * patch * patch), (t, h, w)


def pair_times(times: Sequence[float], tubelet: int) -> list[float]:
    """Seconds of each tubelet: the mean of its first and last frame."""
    times = list(times) + [times[-1]] * (-len(times) % tubelet)
    return [(times[at] + times[at + tubelet - 1]) / 2 for at in range(0, len(times), tubelet)]
