"""Resizing, cropping, flipping and color jitter of clips, on tensors and with an explicit random generator."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from fewtokens.encoders.frames import to_unit


@dataclass(frozen=True)
class Transform:
    """The transform of a clip; the same parameters apply to all its frames.

    Attributes:
        size: side of the output in pixels.
        resize: length of the short side before the crop, in pixels; 0 for `size`.
        scale: range of the short side as a multiple of `resize` (scale jitter for videos).
        area: range of the area of a random crop, as a fraction of the image, with an aspect ratio of 3:4 to 4:3; used
            instead of `scale` (for images) unless it is (1, 1).
        flip: probability of a horizontal flip.
        color: probability of color jitter.
        brightness, contrast, saturation, hue: maximum relative change; for `hue`, a fraction of the color circle.
        gray: probability of conversion to grayscale.
    """

    size: int = 224
    resize: int = 0
    scale: tuple[float, float] = (1.0, 1.0)
    area: tuple[float, float] = (1.0, 1.0)
    flip: float = 0.0
    color: float = 0.0
    brightness: float = 0.4
    contrast: float = 0.4
    saturation: float = 0.4
    hue: float = 0.1
    gray: float = 0.0

    def __post_init__(self) -> None:
        object.__setattr__(self, "scale", tuple(self.scale))
        object.__setattr__(self, "area", tuple(self.area))
        if self.size < 1 or (self.resize and self.resize < self.size):
            raise ValueError(f"resize must be 0 or at least the size {self.size}, got {self.resize}")
        if not 0 < self.scale[0] <= self.scale[1] or not 0 < self.area[0] <= self.area[1] <= 1:
            raise ValueError(
                f"scale and area must be ranges above 0 (area at most 1), got {self.scale} and {self.area}"
            )
        for name in ("flip", "color", "gray"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} must be a probability, got {getattr(self, name)}")

    @property
    def short_side(self) -> int:
        return self.resize or self.size

    def training(self, clip: Tensor, generator: torch.Generator) -> Tensor:
        """Applies the random transform to a clip: uint8 [T,3,H,W] to float [T,3,size,size] in 0..1."""
        height, width = clip.shape[-2:]
        if self.area != (1.0, 1.0):
            top, left, rows, columns = random_box(height, width, self.area, generator)
            x = resize(to_unit(clip[..., top : top + rows, left : left + columns]), (self.size, self.size))
        else:
            low, high = self.scale
            short = max(self.size, round(self.short_side * (low + (high - low) * _rand(generator))))
            x = resize(to_unit(clip), scaled_size(height, width, short))
            top = _randint(x.shape[-2] - self.size + 1, generator)
            left = _randint(x.shape[-1] - self.size + 1, generator)
            x = x[..., top : top + self.size, left : left + self.size]
        if _rand(generator) < self.flip:
            x = x.flip(-1)
        if _rand(generator) < self.color:
            x = self._jitter(x, generator)
        if _rand(generator) < self.gray:
            x = to_gray(x).expand_as(x)
        return x.clamp(0, 1).contiguous()

    def _jitter(self, x: Tensor, generator: torch.Generator) -> Tensor:
        for change in torch.randperm(4, generator=generator).tolist():
            strength = (self.brightness, self.contrast, self.saturation, self.hue)[change]
            amount = strength * (2 * _rand(generator) - 1)
            if change == 0:
                x = x * (1 + amount)
            elif change == 1:
                x = (x - (mean := to_gray(x).mean())) * (1 + amount) + mean
            elif change == 2:
                x = (x - (gray := to_gray(x))) * (1 + amount) + gray
            else:
                x = rotate_hue(x, amount)
            x = x.clamp(0, 1)
        return x

    def view(self, clip: Tensor, crop: int = 0, crops: int = 1) -> Tensor:
        """Returns a fixed crop for testing, [T,3,size,size] in 0..1.

        Args:
            clip: uint8 [T,3,H,W].
            crop: index of the crop.
            crops: the number of crops, evenly spaced along the longer side; a single one is the center crop.
        """
        x = resize(to_unit(clip), scaled_size(clip.shape[-2], clip.shape[-1], self.short_side))
        height, width = x.shape[-2:]
        position = 0.5 if crops == 1 else crop / (crops - 1)
        top = round((height - self.size) * (position if height >= width else 0.5))
        left = round((width - self.size) * (position if width > height else 0.5))
        return x[..., top : top + self.size, left : left + self.size].clamp(0, 1).contiguous()


def scaled_size(height: int, width: int, short: int) -> tuple[int, int]:
    """Scales a size so that its short side is `short`."""
    factor = short / min(height, width)
    return max(short, round(height * factor)), max(short, round(width * factor))


def resize(x: Tensor, size: tuple[int, int], mode: str = "bilinear") -> Tensor:
    """Resizes with antialiasing, keeping the dtype; `mode` is bilinear or bicubic. Returns `x` if it has the size."""
    if tuple(x.shape[-2:]) == size:
        return x
    return F.interpolate(x, size, mode=mode, antialias=True, align_corners=False)


def random_box(
    height: int, width: int, area: tuple[float, float], generator: torch.Generator
) -> tuple[int, int, int, int]:
    """Samples a box with an aspect ratio of 3:4 to 4:3 and an area in a range of fractions of the image.

    Returns:
        top, left, rows, columns; the center square if no box fits after ten tries.
    """
    for _ in range(10):
        fraction = area[0] + (area[1] - area[0]) * _rand(generator)
        aspect = math.exp((2 * _rand(generator) - 1) * math.log(4 / 3))
        rows = round(math.sqrt(height * width * fraction / aspect))
        columns = round(math.sqrt(height * width * fraction * aspect))
        if 0 < rows <= height and 0 < columns <= width:
            top = _randint(height - rows + 1, generator)
            return top, _randint(width - columns + 1, generator), rows, columns
    side = min(height, width)
    return (height - side) // 2, (width - side) // 2, side, side


def to_gray(x: Tensor) -> Tensor:
    """Computes the luma (ITU-R 601), [T,3,H,W] to [T,1,H,W]."""
    r, g, b = x.unbind(-3)
    return (0.299 * r + 0.587 * g + 0.114 * b).unsqueeze(-3)


def rotate_hue(x: Tensor, turn: float) -> Tensor:
    """Rotates colors around the gray axis of the YIQ space by a fraction of the circle; gray is unchanged."""
    angle = 2 * math.pi * turn
    to_yiq = torch.tensor([[0.299, 0.587, 0.114], [0.5959, -0.2746, -0.3213], [0.2115, -0.5227, 0.3112]])
    rotation = torch.tensor([[1, 0, 0], [0, math.cos(angle), -math.sin(angle)], [0, math.sin(angle), math.cos(angle)]])
    matrix = torch.linalg.inv(to_yiq) @ rotation @ to_yiq
    return torch.einsum("ij,...jhw->...ihw", matrix.to(x), x)


def _rand(generator: torch.Generator) -> float:
    return float(torch.rand((), generator=generator))


def _randint(limit: int, generator: torch.Generator) -> int:
    return int(torch.randint(max(1, limit), (), generator=generator))
