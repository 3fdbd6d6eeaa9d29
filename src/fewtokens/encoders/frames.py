"""Preprocessing of frames for an encoder: size, range, patches."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from fewtokens.core.grid import Grid
from fewtokens.core.plan import readable

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


def to_unit(frames: Tensor) -> Tensor:
    """Converts frames [...,3,H,W] to float in 0..1: uint8 is divided by 255, float is returned as float32.

    Raises:
        ValueError: another dtype, or not three channels.
    """
    if frames.ndim < 4 or frames.shape[-3] != 3:
        raise ValueError(f"frames must be [B,T,3,H,W], got {list(frames.shape)}")
    if frames.dtype == torch.uint8:
        return frames.float().div_(255)
    if not frames.is_floating_point():
        raise ValueError(f"frames must be uint8, or float in 0..1, got {frames.dtype}")
    return frames.float()


def make_grid(frames: int, height: int, width: int, tubelet: int, patch: int, times: Tensor | None = None) -> Grid:
    """Returns the grid of a video of this size in pixels after `fit`; a tubelet has the time of its first frame."""
    if times is not None:
        times = torch.as_tensor(times, dtype=torch.float64)
        if times.shape[-1] != frames:
            raise ValueError(f"times must have one value per frame ({frames}), got {times.shape[-1]}")
        times = times[..., ::tubelet]
    return Grid(-(-frames // tubelet), max(1, round(height / patch)), max(1, round(width / patch)), times)


def fit(frames: Tensor, grid: Grid, tubelet: int, patch: int) -> Tensor:
    """Resizes frames [B,T,3,H,W] to multiples of the patch size, and repeats the last one to fill the last tubelet.

    Heights and widths are scaled to the nearest multiple of the patch size; nothing is cropped. Values are in 0..1.
    """
    T = frames.shape[1]
    size = (grid.H * patch, grid.W * patch)
    frames = resize(frames, size)
    missing = grid.T * tubelet - T
    if missing:
        frames = torch.cat([frames, frames[:, -1:].expand(-1, missing, -1, -1, -1)], dim=1)
    return frames


def resize(frames: Tensor, size: tuple[int, int]) -> Tensor:
    """Resizes frames [B,T,3,H,W] to (height, width) and clamps them to 0..1; frames of this size are unchanged."""
    if tuple(frames.shape[-2:]) == tuple(size):
        return frames
    resized = F.interpolate(frames.flatten(0, 1), tuple(size), mode="bilinear", antialias=True, align_corners=False)
    return resized.clamp_(0, 1).unflatten(0, tuple(frames.shape[:2]))


def patchify(frames: Tensor, tubelet: int, patch: int) -> Tensor:
    """Splits frames [B,T*p,3,H*q,W*q] into the pixels of each cell [B,T*H*W,p,q*q*3] (row, column, channel)."""
    if not readable(frames) or (frames.requires_grad and torch.is_grad_enabled()):
        # One copy per channel reads and writes whole rows, unlike a single copy with the channels innermost.
        channels = rearrange(frames, "b (t p) c (h q) (w r) -> c b t h w p q r", p=tubelet, q=patch, r=patch)
        return rearrange(torch.stack(channels.unbind(), dim=-1), "b t h w p q r c -> b (t h w) p (q r c)")
    B, T, C, height, width = frames.shape
    grid = (T // tubelet, height // patch, width // patch)
    cells = frames.new_empty(B * grid[0], *grid[1:], tubelet, patch, patch, C)
    # The frames of one cell stay in the cache between the two copies: channels last, then whole rows of patches.
    for out, part in zip(cells, frames.flatten(0, 1).split(tubelet), strict=True):
        rows = part.contiguous(memory_format=torch.channels_last).permute(0, 2, 3, 1)
        out.copy_(rearrange(rows, "p (h q) (w r) c -> h w p q r c", q=patch, r=patch))
    return cells.reshape(B, math.prod(grid), tubelet, patch * patch * C)


def unpatchify(pixels: Tensor, grid: Grid, tubelet: int, patch: int) -> Tensor:
    """Inverse of `patchify`."""
    T, H, W = grid.shape
    return rearrange(
        pixels, "b (t h w) p (q r c) -> b (t p) c (h q) (w r)", t=T, h=H, w=W, p=tubelet, q=patch, r=patch, c=3
    )  # fmt: skip


def normalize(frames: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """Returns (frames - mean) / std for frames [...,3,H,W], per channel."""
    m, s = (torch.tensor(value, device=frames.device, dtype=frames.dtype)[:, None, None] for value in (mean, std))
    return (frames - m) / s
