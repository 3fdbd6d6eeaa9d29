"""Coloured shapes and handwritten digits on a background: what is where in each frame, and its drawing.

Places and sizes are shares of the picture's side, (row, column), so that a scene is the same at every size.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache, lru_cache

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from fewtokens.core.shapes import by_shape

Floats = NDArray[np.float32]

COLOURS = {
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

# Side of the masks that are sampled for drawing; about five of their points to a pixel of a usual object.
_FINE = 96


@dataclass(frozen=True)
class Actor:
    """One object of a scene.

    Attributes:
        look: name of a shape, or a digit.
        colour: name.
        side: of its box, share of the picture.
        path: float64 [T,2], row and column of the middle of the box in each frame, share of the picture.
        shown: bool [T].
        writing: which handwritten picture of the digit; any number, taken modulo those there are.
    """

    look: str
    colour: str
    side: float
    path: NDArray[np.float64]
    shown: NDArray[np.bool_]
    writing: int = 0

    __repr__ = by_shape


@dataclass(frozen=True)
class Background:
    """What is behind the objects: dark and nearly grey, so that every colour stands out.

    Attributes:
        kind: one of `BACKGROUNDS`.
        drift: how far the camera's motion carries it over the clip (rows, columns), share of the picture.
        seed: of its grey and its texture.
    """

    kind: str
    drift: tuple[float, float]
    seed: int


def render(actors: list[Actor], background: Background, frames: int, size: int, split: str) -> Tensor:
    """Draws a scene with smooth edges, later actors over earlier ones.

    Args:
        split: whose handwriting; no picture of a digit is in two splits.

    Returns:
        uint8 [T,3,size,size].

    Raises:
        ValueError: there is a digit and scikit-learn is missing.
    """
    reach = [np.abs(a.path[a.shown] - 0.5).max() + a.side / 2 - 0.5 for a in actors if a.shown.any()]
    margin = max(0, int(np.ceil(max(reach, default=0) * size)) + 2)
    canvas = np.zeros((frames, size + 2 * margin, size + 2 * margin, 3), np.float32)
    inner = canvas[:, margin : margin + size, margin : margin + size]
    inner[:] = _ground(background, frames, size)
    for actor in actors:
        _draw(canvas, actor, margin, size, split)
    pixels = torch.from_numpy((inner + 0.5).astype(np.uint8))
    return pixels.permute(0, 3, 1, 2).contiguous()


def _draw(canvas: Floats, actor: Actor, margin: int, size: int, split: str) -> None:
    """Adds an actor to the canvas [T,H,W,3], in all frames at once."""
    times = np.flatnonzero(actor.shown)
    side = actor.side * size
    sums = _handwriting_sums(int(actor.look), actor.writing, split) if actor.look in DIGITS else _shape_sums(actor.look)
    corner = actor.path[times] * size - side / 2 + margin  # [F,2]
    first = np.floor(corner).astype(int)
    edges = first[:, :, None] + np.arange(int(np.ceil(side)) + 2)  # [F,2,w+1], the pixels' borders
    fine = np.rint((edges - corner[:, :, None]) / side * _FINE).astype(int)
    widths = np.diff(fine, axis=2)
    row, column = np.moveaxis(fine.clip(0, _FINE), 1, 0)
    # A pixel is covered by the share of the mask's points that lie in it, out of sums over rectangles.
    corners = sums[row[:, :, None], column[:, None, :]]  # [F,w+1,w+1]
    cover = np.diff(np.diff(corners, axis=1), axis=2) / (widths[:, 0, :, None] * widths[:, 1, None, :])
    where = (times[:, None, None], edges[:, 0, :-1, None], edges[:, 1, None, :-1])
    colour = np.array(COLOURS[actor.colour], np.float32)
    cover = cover.astype(np.float32)[..., None]
    canvas[where] += cover * (colour - canvas[where])


def _sums(mask: Floats) -> NDArray[np.float64]:
    return np.pad(mask.astype(np.float64).cumsum(0).cumsum(1), ((1, 0), (1, 0)))


@cache
def _shape_sums(shape: str) -> NDArray[np.float64]:
    """Sums [97,97] over the mask of a shape, which fills its box in at least one direction."""
    y, x = (np.mgrid[0:_FINE, 0:_FINE] + 0.5) / (_FINE / 2) - 1
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
        # One fifth of the star's turn, folded at its point: the side of the line from the point to the notch.
        turn = np.arctan2(x, 0.08 - y)
        folded = abs((turn + np.pi / 5) % (2 * np.pi / 5) - np.pi / 5)
        radius, notch = np.hypot(y - 0.08, x), 0.42
        along, across = radius * np.cos(folded), radius * np.sin(folded)
        far, high = notch * np.cos(np.pi / 5), notch * np.sin(np.pi / 5)
        inside = (1.05 - along) * high >= across * (1.05 - far)
    return _sums(inside.astype(np.float32))


@lru_cache(maxsize=1)
def _handwriting() -> tuple[Floats, NDArray[np.int64]]:
    """Pictures [n,8,8] in 0..1 and their digits, without the ones that are hard to read.

    Those stay whose five nearest others all bear the same digit: the answer to a question must be certain.
    """
    try:
        from sklearn.datasets import load_digits
    except ImportError:
        raise ValueError(
            "handwritten digits come with scikit-learn: pip install 'fewtokens[eval]', or SceneConfig(digits=False)"
        ) from None
    found = load_digits()
    pictures, digits = found.images.astype(np.float32) / 16, found.target.astype(np.int64)
    flat = pictures.reshape(len(pictures), -1)
    distance = (flat**2).sum(1)[:, None] + (flat**2).sum(1) - 2 * flat @ flat.T
    np.fill_diagonal(distance, np.inf)
    nearest = np.argpartition(distance, 5, axis=1)[:, :5]
    clear = (digits[nearest] == digits[:, None]).all(1)
    return pictures[clear], digits[clear]


@lru_cache(maxsize=256)
def _handwriting_sums(digit: int, writing: int, split: str) -> NDArray[np.float64]:
    """Sums [97,97] over the mask of a handwritten digit. Eight of ten pictures are for training."""
    pictures, digits = _handwriting()
    tenth = np.arange(len(digits)) % 10
    of_split = {"train": tenth < 8, "val": tenth == 8, "test": tenth == 9}[split]
    mine = pictures[of_split & (digits == digit)]
    large = Image.fromarray(mine[writing % len(mine)]).resize((_FINE, _FINE), Image.Resampling.BICUBIC)
    # The middle of a stroke becomes solid, of the colour that is asked for; faint strokes stay, or a 0 would be a C.
    return _sums(((np.asarray(large) - 0.15) / 0.5).clip(0, 1))


def _ground(background: Background, frames: int, size: int) -> Floats:
    """[T,size,size,3] in 0..255, or [1,...] where all frames are alike."""
    rng = np.random.default_rng(background.seed)
    drift = np.rint(np.array(background.drift) * size).astype(int)
    high, wide = size + abs(drift)
    base, tint = rng.uniform(35, 80), rng.uniform(-8, 8, 3)
    light = np.zeros((high, wide))
    if background.kind == "gradient":
        turn = rng.uniform(0, 2 * np.pi)
        y, x = np.mgrid[0:high, 0:wide] / max(high, wide) - 0.5
        light = 50 * (np.cos(turn) * x + np.sin(turn) * y)
    elif background.kind == "texture":
        for cells, strength in ((5, 9.0), (13, 7.0), (31, 4.0)):
            noise = Image.fromarray(rng.standard_normal((cells, cells)).astype(np.float32))
            light += strength * np.asarray(noise.resize((wide, high), Image.Resampling.BICUBIC))
    ground = (base + light[..., None] + tint).clip(15, 110).astype(np.float32)
    # The window goes against the way in which the picture's content drifts.
    steps = np.rint(np.linspace(0, 1, frames)[:, None] * drift).astype(int)
    starts = np.maximum(drift, 0) - steps
    if not drift.any() or background.kind == "plain":
        return ground[None, :size, :size]
    return np.stack([ground[row : row + size, column : column + size] for row, column in starts])
