"""Scaling, cropping, flipping and colours of clips, on plain tensors and drawn from a generator of their own."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from fewtokens.encoders.frames import to_unit


@dataclass(frozen=True)
class Transform:
    """What happens to the frames of a clip, the same for all of them.

    Attributes:
        size: side of the square that comes out, in pixels.
        resize: short side before the crop; 0 is the size itself.
        scale: the short side is drawn between these multiples of `resize` (scale jitter of videos).
        area: or a part of this share of the picture is cut out, of an aspect of 3:4 to 4:3, and resized (images);
            (1, 1) is off.
        flip: probability of a mirror image.
        colour: probability of a change of brightness, contrast, saturation and hue.
        brightness, contrast, saturation, hue: how far, as a share (hue of the circle).
        grey: probability of losing all colour.
    """

    size: int = 224
    resize: int = 0
    scale: tuple[float, float] = (1.0, 1.0)
    area: tuple[float, float] = (1.0, 1.0)
    flip: float = 0.0
    colour: float = 0.0
    brightness: float = 0.4
    contrast: float = 0.4
    saturation: float = 0.4
    hue: float = 0.1
    grey: float = 0.0

    def __post_init__(self) -> None:
        object.__setattr__(self, "scale", tuple(self.scale))
        object.__setattr__(self, "area", tuple(self.area))
        if self.size < 1 or (self.resize and self.resize < self.size):
            raise ValueError(f"resize must be at least the size {self.size}, or 0, got {self.resize}")
        if not 0 < self.scale[0] <= self.scale[1] or not 0 < self.area[0] <= self.area[1] <= 1:
            raise ValueError(f"scale and area must be ranges above 0 (area up to 1), got {self.scale} and {self.area}")
        for name in ("flip", "colour", "grey"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} must be a probability, got {getattr(self, name)}")

    @property
    def short_side(self) -> int:
        return self.resize or self.size

    def training(self, clip: Tensor, generator: torch.Generator) -> Tensor:
        """A clip [T,3,H,W], uint8, to [T,3,size,size], float in 0..1, with everything drawn from the generator."""
        height, width = clip.shape[-2:]
        if self.area != (1.0, 1.0):
            top, left, rows, columns = random_part(height, width, self.area, generator)
            x = resize(to_unit(clip[..., top : top + rows, left : left + columns]), (self.size, self.size))
        else:
            low, high = self.scale
            short = max(self.size, round(self.short_side * (low + (high - low) * _uniform(generator))))
            x = resize(to_unit(clip), scaled(height, width, short))
            top = _integer(x.shape[-2] - self.size + 1, generator)
            left = _integer(x.shape[-1] - self.size + 1, generator)
            x = x[..., top : top + self.size, left : left + self.size]
        if _uniform(generator) < self.flip:
            x = x.flip(-1)
        if _uniform(generator) < self.colour:
            x = self._jitter(x, generator)
        if _uniform(generator) < self.grey:
            x = grey(x).expand_as(x)
        return x.clamp(0, 1).contiguous()

    def _jitter(self, x: Tensor, generator: torch.Generator) -> Tensor:
        for change in torch.randperm(4, generator=generator).tolist():
            strength = (self.brightness, self.contrast, self.saturation, self.hue)[change]
            amount = strength * (2 * _uniform(generator) - 1)
            if change == 0:
                x = x * (1 + amount)
            elif change == 1:
                x = (x - (mean := grey(x).mean())) * (1 + amount) + mean
            elif change == 2:
                x = (x - (plain := grey(x))) * (1 + amount) + plain
            else:
                x = turn_hue(x, amount)
            x = x.clamp(0, 1)
        return x

    def view(self, clip: Tensor, crop: int = 0, crops: int = 1) -> Tensor:
        """One crop for testing, [T,3,size,size] in 0..1.

        Args:
            clip: [T,3,H,W], uint8.
            crop, crops: which of so many, spread evenly along the longer side; one is the centre.
        """
        x = resize(to_unit(clip), scaled(clip.shape[-2], clip.shape[-1], self.short_side))
        height, width = x.shape[-2:]
        share = 0.5 if crops == 1 else crop / (crops - 1)
        top = round((height - self.size) * (share if height >= width else 0.5))
        left = round((width - self.size) * (share if width > height else 0.5))
        return x[..., top : top + self.size, left : left + self.size].clamp(0, 1).contiguous()


def scaled(height: int, width: int, short: int) -> tuple[int, int]:
    """The size whose short side is `short`."""
    factor = short / min(height, width)
    return max(short, round(height * factor)), max(short, round(width * factor))


def resize(x: Tensor, size: tuple[int, int], mode: str = "bilinear") -> Tensor:
    """Bilinear or bicubic with antialiasing; the same tensor where nothing changes. Bytes stay bytes."""
    if tuple(x.shape[-2:]) == size:
        return x
    return F.interpolate(x, size, mode=mode, antialias=True, align_corners=False)


def random_part(
    height: int, width: int, area: tuple[float, float], generator: torch.Generator
) -> tuple[int, int, int, int]:
    """A box of this share of the picture and an aspect of 3:4 to 4:3: top, left, rows, columns.

    The middle square where none was found to fit.
    """
    for _ in range(10):
        share = area[0] + (area[1] - area[0]) * _uniform(generator)
        aspect = math.exp((2 * _uniform(generator) - 1) * math.log(4 / 3))
        rows = round(math.sqrt(height * width * share / aspect))
        columns = round(math.sqrt(height * width * share * aspect))
        if 0 < rows <= height and 0 < columns <= width:
            top = _integer(height - rows + 1, generator)
            return top, _integer(width - columns + 1, generator), rows, columns
    side = min(height, width)
    return (height - side) // 2, (width - side) // 2, side, side


def grey(x: Tensor) -> Tensor:
    """Luma (ITU-R 601) of [T,3,H,W], [T,1,H,W]."""
    r, g, b = x.unbind(-3)
    return (0.299 * r + 0.587 * g + 0.114 * b).unsqueeze(-3)


def turn_hue(x: Tensor, turn: float) -> Tensor:
    """Colours turned around the grey axis in the YIQ space, by a share of the circle; grey stays grey."""
    angle = 2 * math.pi * turn
    to_yiq = torch.tensor([[0.299, 0.587, 0.114], [0.5959, -0.2746, -0.3213], [0.2115, -0.5227, 0.3112]])
    rotation = torch.tensor([[1, 0, 0], [0, math.cos(angle), -math.sin(angle)], [0, math.sin(angle), math.cos(angle)]])
    matrix = torch.linalg.inv(to_yiq) @ rotation @ to_yiq
    return torch.einsum("ij,...jhw->...ihw", matrix.to(x), x)


def _uniform(generator: torch.Generator) -> float:
    return float(torch.rand((), generator=generator))


def _integer(below: int, generator: torch.Generator) -> int:
    return int(torch.randint(max(1, below), (), generator=generator))
