"""Preprocesses frames for a video language model as transformers' video processors do, without torchvision.

Everything runs on a CPU and on uint8 until the end, which is needed to match transformers bit for bit.
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

from fewtokens.core.shapes import shape_repr

# The ids of filters in preprocessor_config.json, which are Pillow's.
LANCZOS, BILINEAR, BICUBIC = 1, 2, 3
_MAX_ASPECT = 200


@dataclass
class PreparedVideo:
    """A video or an image as a model takes it.

    Attributes:
        inputs: pixels [...] for the encoder, and other inputs that describe it (grids, times), by name.
        text: the text for it in the prompt, with a placeholder for each row of features.
        tiles: the number of tiles of an image that are separate images in the prompt, see `items` of `compress`.
    """

    inputs: dict[str, Tensor] = field(default_factory=dict)
    text: str = ""
    tiles: int = 1

    __repr__ = shape_repr


def resize(frames: Tensor, size: tuple[int, int], resample: int = BICUBIC) -> Tensor:
    """Resizes frames uint8 [T,3,H,W] to (height, width), uint8, with antialiasing.

    Raises:
        ValueError: a filter other than Lanczos, bilinear or bicubic.
    """
    if tuple(frames.shape[-2:]) == size:
        return frames
    if resample == LANCZOS:
        # Only recent versions of torch have it.
        images = [Image.fromarray(frame.permute(1, 2, 0).numpy()) for frame in frames]
        resized = [np.asarray(image.resize(size[::-1], Image.Resampling.LANCZOS)) for image in images]
        return torch.from_numpy(np.stack(resized)).permute(0, 3, 1, 2).contiguous()
    modes = {BILINEAR: "bilinear", BICUBIC: "bicubic"}
    if resample not in modes:
        raise ValueError(
            f"the model's processor resizes with Pillow's filter {resample}; only 1, 2 and 3 are supported"
        )
    return F.interpolate(frames, size=size, mode=modes[resample], antialias=True, align_corners=False)


def square_frames(frames: Tensor, size: int, count: int = 0) -> Tensor:
    """Resizes the short side of frames uint8 [T,3,H,W] to `size` and crops the center: [T,3,size,size].

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
    """Converts uint8 to float32: (frames * factor - mean) / std with `image_mean`, `image_std` and `rescale_factor`."""
    scale = 1.0 / config.get("rescale_factor", 1 / 255)
    mean, std = (torch.tensor(config[name])[:, None, None] * scale for name in ("image_mean", "image_std"))
    return (frames.float() - mean) / std


def fit(frames: Tensor, config: Mapping[str, Any]) -> Tensor:
    """Resizes frames to the fixed size of a model: `size` is height and width, or the short side.

    If `do_center_crop`, the center of size `crop_size` is cropped.

    Raises:
        ValueError: `size` specifies neither.
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
        raise ValueError(f"the model's processor specifies size {size}; supported: height and width, or shortest_edge")
    frames = resize(frames, target, config["resample"])
    if config.get("do_center_crop") and config.get("crop_size"):
        crop = config["crop_size"]
        crop = {"height": crop, "width": crop} if isinstance(crop, int) else crop
        frames = _crop(frames, crop["height"], crop["width"])
    return frames


def _crop(frames: Tensor, height: int, width: int) -> Tensor:
    """Crops the center [height,width]; smaller frames are padded with black."""
    missing = [max(0, target - side) for target, side in ((width, frames.shape[-1]), (height, frames.shape[-2]))]
    if any(missing):
        frames = F.pad(frames, [part for gap in missing for part in (gap // 2, (gap + 1) // 2)])
    top, left = (int((side - target) / 2) for side, target in zip(frames.shape[-2:], (height, width), strict=True))
    return frames[..., top : top + height, left : left + width]


def whole_patches(
    height: int,
    width: int,
    factor: int,
    min_pixels: float,
    max_pixels: float,
    frames: int = 1,
    padded_frames: int | None = None,
) -> tuple[int, int]:
    """Returns the size nearest to (height, width) in multiples of `factor`, with `min_pixels` to `max_pixels` pixels.

    Args:
        frames: the number of frames that share the limits.
        padded_frames: the number of frames including those that fill the last tubelet. It decides whether the limits
            are met; the scale is computed from `frames`.

    Raises:
        ValueError: one side is more than 200 times the other.
    """
    if max(height, width) > _MAX_ASPECT * min(height, width):
        raise ValueError(
            f"frames of {width}x{height} are too narrow for this model, which accepts up to 1:{_MAX_ASPECT}"
        )
    new_height, new_width = round(height / factor) * factor, round(width / factor) * factor
    padded_frames = padded_frames or frames
    if padded_frames * new_height * new_width > max_pixels:
        shrink = math.sqrt(frames * height * width / max_pixels)
        new_height, new_width = (max(factor, math.floor(side / shrink / factor) * factor) for side in (height, width))
    elif padded_frames * new_height * new_width < min_pixels:
        grow = math.sqrt(min_pixels / (frames * height * width))
        new_height, new_width = (math.ceil(side * grow / factor) * factor for side in (height, width))
    return new_height, new_width


def pixel_limits(config: Mapping[str, Any]) -> tuple[float, float]:
    """Returns the minimum and maximum number of pixels that a processor specifies, in either of its two ways.

    Raises:
        ValueError: it specifies neither.
    """
    size = config["size"]
    low, high = config.get("min_pixels"), config.get("max_pixels")
    low = size.get("shortest_edge", size.get("min_pixels")) if low is None else low
    high = size.get("longest_edge", size.get("max_pixels")) if high is None else high
    if not low or not high:
        raise ValueError(
            f"the model's processor specifies size {size}; supported: shortest_edge and longest_edge, in pixels"
        )
    return low, high


def pack(frames: Tensor, patch: int, merge: int, tubelet: int) -> tuple[Tensor, tuple[int, int, int]]:
    """Splits frames [T,3,H,W] into patches [t*h*w, 3*tubelet*patch*patch]; returns them and (t, h, w).

    The patches of a cell are consecutive; the last frame is repeated to fill the last tubelet.
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
    """Returns the time of each tubelet in seconds: the mean of its first and last frame."""
    times = list(times) + [times[-1]] * (-len(times) % tubelet)
    return [(times[at] + times[at + tubelet - 1]) / 2 for at in range(0, len(times), tubelet)]
