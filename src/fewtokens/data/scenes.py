"""Colored shapes and handwritten digits on a background: their positions in each frame, and rendering.

Positions and sizes are (row, column) as fractions of the side of the frame, so that a scene does not depend on the
resolution.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache, lru_cache

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from fewtokens.core.shapes import shape_repr

Floats = NDArray[np.float32]

COLORS = {
    "red": (225, 35, 40),
    "green": (30, 170, 60),
    "blue": (45, 85, 255),
    "yellow": (250, 225, 40),
    "purple": (165, 50, 210),
    "orange": (255, 135, 15),
    "white": (250, 250, 250),
    "cyan": (40, 225, 235),
}
SHAPES = ("circle", "square", "triangle", "star", "cross", "diamond")
DIGITS = tuple("0123456789")
BACKGROUNDS = ("plain", "gradient", "texture")
SPLITS = ("train", "val", "test")

# Side of the masks that are sampled for rendering: about five of their points per pixel of an object of typical size.
_MASK_SIZE = 96


@dataclass(frozen=True)
class Actor:
    """One object of a scene.

    Attributes:
        look: name of a shape, or a digit.
        color: name of a color.
        side: side of its box, as a fraction of the frame.
        path: float64 [T,2], row and column of the center of the box in each frame, as a fraction of the frame.
        shown: bool [T], whether it is visible in each frame.
        writing: index of the handwriting sample of a digit, modulo the number of samples.
    """

    look: str
    color: str
    side: float
    path: NDArray[np.float64]
    shown: NDArray[np.bool_]
    writing: int = 0

    __repr__ = shape_repr


@dataclass(frozen=True)
class Background:
    """The background: dark and nearly gray, so that all colors are easy to see.

    Attributes:
        kind: one of `BACKGROUNDS`.
        drift: its displacement by the motion of the camera over the clip (rows, columns), as a fraction of the frame.
        seed: random seed of its gray level and texture.
    """

    kind: str
    drift: tuple[float, float]
    seed: int


def render(actors: list[Actor], background: Background, frames: int, size: int, split: str) -> Tensor:
    """Renders a scene with antialiased edges, later actors over earlier ones.

    Args:
        actors: the objects.
        background: the background.
        frames: number of frames.
        size: side of a frame in pixels.
        split: the split of the handwriting samples; no sample is in two splits.

    Returns:
        uint8 [T,3,size,size].

    Raises:
        ValueError: the scene contains a digit and scikit-learn is not installed.
    """
    overhang = [np.abs(a.path[a.shown] - 0.5).max() + a.side / 2 - 0.5 for a in actors if a.shown.any()]
    margin = max(0, int(np.ceil(max(overhang, default=0) * size)) + 2)
    canvas = np.zeros((frames, size + 2 * margin, size + 2 * margin, 3), np.float32)
    inner = canvas[:, margin : margin + size, margin : margin + size]
    inner[:] = _ground(background, frames, size)
    for actor in actors:
        _draw(canvas, actor, margin, size, split)
    pixels = torch.from_numpy((inner + 0.5).astype(np.uint8))
    return pixels.permute(0, 3, 1, 2).contiguous()


def _draw(canvas: Floats, actor: Actor, margin: int, size: int, split: str) -> None:
    """Draws an actor on the canvas [T,H,W,3] in all frames."""
    times = np.flatnonzero(actor.shown)
    side = actor.side * size
    sums = _handwriting_sums(int(actor.look), actor.writing, split) if actor.look in DIGITS else _shape_sums(actor.look)
    corner = actor.path[times] * size - side / 2 + margin  # [F,2]
    first = np.floor(corner).astype(int)
    edges = first[:, :, None] + np.arange(int(np.ceil(side)) + 2)  # [F,2,w+1], the borders of the pixels
    fine = np.rint((edges - corner[:, :, None]) / side * _MASK_SIZE).astype(int)
    widths = np.diff(fine, axis=2)
    row, column = np.moveaxis(fine.clip(0, _MASK_SIZE), 1, 0)
    # The coverage of a pixel is the mean of the mask inside it, from a summed-area table.
    corners = sums[row[:, :, None], column[:, None, :]]  # [F,w+1,w+1]
    cover = np.diff(np.diff(corners, axis=1), axis=2) / (widths[:, 0, :, None] * widths[:, 1, None, :])
    where = (times[:, None, None], edges[:, 0, :-1, None], edges[:, 1, None, :-1])
    color = np.array(COLORS[actor.color], np.float32)
    cover = cover.astype(np.float32)[..., None]
    canvas[where] += cover * (color - canvas[where])


def _sum_table(mask: Floats) -> NDArray[np.float64]:
    return np.pad(mask.astype(np.float64).cumsum(0).cumsum(1), ((1, 0), (1, 0)))


@cache
def _shape_sums(shape: str) -> NDArray[np.float64]:
    """The summed-area table [97,97] of the mask of a shape, which fills its box along at least one axis."""
    y, x = (np.mgrid[0:_MASK_SIZE, 0:_MASK_SIZE] + 0.5) / (_MASK_SIZE / 2) - 1
    if shape == "circle":
        inside = np.hypot(y, x) <= 1
    elif shape == "square":
        inside = np.maximum(abs(y), abs(x)) <= 0.9
    elif shape == "triangle":
        inside = (y <= 0.9) & (abs(x) <= (y + 1) / 1.9)
    elif shape == "cross":
        inside = (np.minimum(abs(y), abs(x)) <= 0.32) & (np.maximum(abs(y), abs(x)) <= 1)
    elif shape == "diamond":
        inside = abs(y) + abs(x) <= 1
    else:
        # A star has ten equal sectors: maps all to one, and tests on which side of the line from tip to notch it is.
        angle = np.arctan2(x, 0.08 - y)
        folded = abs((angle + np.pi / 5) % (2 * np.pi / 5) - np.pi / 5)
        radius, notch = np.hypot(y - 0.08, x), 0.42
        along, across = radius * np.cos(folded), radius * np.sin(folded)
        far, high = notch * np.cos(np.pi / 5), notch * np.sin(np.pi / 5)
        inside = (1.05 - along) * high >= across * (1.05 - far)
    return _sum_table(inside.astype(np.float32))


@lru_cache(maxsize=1)
def _handwriting() -> tuple[Floats, NDArray[np.int64]]:
    """Images [n,8,8] in 0..1 and their digits, without the ones that are hard to read.

    Only images whose five nearest neighbors all show the same digit are used, so that answers are unambiguous.
    """
    try:
        from sklearn.datasets import load_digits
    except ImportError:
        raise ValueError(
            "handwritten digits require scikit-learn; install it with pip install 'fewtokens[eval]', or use "
            "SceneConfig(digits=False)"
        ) from None
    dataset = load_digits()
    images, digits = dataset.images.astype(np.float32) / 16, dataset.target.astype(np.int64)
    flat = images.reshape(len(images), -1)
    distance = (flat**2).sum(1)[:, None] + (flat**2).sum(1) - 2 * flat @ flat.T
    np.fill_diagonal(distance, np.inf)
    nearest = np.argpartition(distance, 5, axis=1)[:, :5]
    clear = (digits[nearest] == digits[:, None]).all(1)
    return images[clear], digits[clear]


@lru_cache(maxsize=256)
def _handwriting_sums(digit: int, writing: int, split: str) -> NDArray[np.float64]:
    """The summed-area table [97,97] of the mask of a handwritten digit. Eight of ten images are for training."""
    images, digits = _handwriting()
    tenth = np.arange(len(digits)) % 10
    in_split = {"train": tenth < 8, "val": tenth == 8, "test": tenth == 9}[split]
    samples = images[in_split & (digits == digit)]
    large = Image.fromarray(samples[writing % len(samples)]).resize((_MASK_SIZE, _MASK_SIZE), Image.Resampling.BICUBIC)
    # Makes the middle of strokes opaque, so that the color is unambiguous. Faint strokes remain: without them a 0
    # could look like a C.
    return _sum_table(((np.asarray(large) - 0.15) / 0.5).clip(0, 1))


def _ground(background: Background, frames: int, size: int) -> Floats:
    """The background, [T,size,size,3] in 0..255, or [1,size,size,3] if all frames are equal."""
    rng = np.random.default_rng(background.seed)
    drift = np.rint(np.array(background.drift) * size).astype(int)
    height, width = size + abs(drift)
    base, tint = rng.uniform(35, 80), rng.uniform(-8, 8, 3)
    light = np.zeros((height, width))
    if background.kind == "gradient":
        angle = rng.uniform(0, 2 * np.pi)
        y, x = np.mgrid[0:height, 0:width] / max(height, width) - 0.5
        light = 50 * (np.cos(angle) * x + np.sin(angle) * y)
    elif background.kind == "texture":
        for cells, strength in ((5, 9.0), (13, 7.0), (31, 4.0)):
            noise = Image.fromarray(rng.standard_normal((cells, cells)).astype(np.float32))
            light += strength * np.asarray(noise.resize((width, height), Image.Resampling.BICUBIC))
    ground = (base + light[..., None] + tint).clip(15, 110).astype(np.float32)
    # The window moves opposite to the drift of the content.
    steps = np.rint(np.linspace(0, 1, frames)[:, None] * drift).astype(int)
    starts = np.maximum(drift, 0) - steps
    if not drift.any() or background.kind == "plain":
        return ground[None, :size, :size]
    return np.stack([ground[row : row + size, column : column + size] for row, column in starts])
