"""Synthetic clips for demos and tests, deterministic for a given seed."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray

from fewtokens.video.types import Video

Image = NDArray[np.float32]  # [H,W,3] in 0..1

_COLORS = np.array(
    [[230, 97, 60], [245, 190, 65], [84, 160, 110], [70, 130, 200], [150, 100, 180], [240, 240, 235]],
    dtype=np.float32,
) / 255.0  # fmt: skip


def synthetic(
    kind: str, *, frames: int = 16, size: tuple[int, int] = (128, 128), fps: float = 8.0, seed: int = 0
) -> Video:
    """Generates a synthetic clip.

        video = fewtokens.synthetic("pan", frames=16, size=(224, 224))

    Args:
        kind: "shapes" (colored shapes that move and bounce), "digits" (moving handwritten digits, from scikit-learn),
            "glyphs" (moving digits of a typeface), "static" (fixed camera, one moving object), "pan" (camera pan over
            a scene, one moving object), "cuts" (up to 4 static scenes) or "noise" (independent frames).
        frames: number of frames, at least 1. Default: 16.
        size: height and width in pixels. Default: (128, 128).
        fps: frames per second. Default: 8.
        seed: random seed.

    Returns:
        A `Video` with `path` "synthetic-<kind>".

    Raises:
        ValueError: `kind` is unknown, or a number is out of range.
    """
    if kind not in _GENERATORS:
        raise ValueError(f"kind must be one of {', '.join(KINDS)}, got {kind!r}")
    if frames < 1 or min(size) < 1 or fps <= 0:
        raise ValueError(f"frames, size and fps must be above 0, got {frames}, {size} and {fps}")
    clip = _GENERATORS[kind](np.random.Generator(np.random.PCG64(seed)), frames, *size)
    pixels = torch.from_numpy((clip.clip(0, 1) * 255).round().astype(np.uint8)).permute(0, 3, 1, 2).contiguous()
    return Video(pixels, torch.arange(frames, dtype=torch.float64) / fps, frames / fps, fps, f"synthetic-{kind}")


def _smooth(rng: np.random.Generator, height: int, width: int, scales: tuple[int, ...] = (4, 9, 21, 55)) -> Image:
    """Returns a smooth random texture [height,width] with mean about 0 and standard deviation 1."""
    import torch.nn.functional as F

    total = torch.zeros(1, 1, height, width)
    for level, cells in enumerate(scales):
        noise = torch.from_numpy(rng.standard_normal((1, 1, cells, cells)).astype(np.float32))
        total += F.interpolate(noise, (height, width), mode="bicubic", align_corners=False) / (level + 1)
    return (total / total.std().clamp(min=1e-6))[0, 0].numpy()


def _scene(rng: np.random.Generator, height: int, width: int) -> Image:
    """Returns a landscape with sky, textured hills and some houses."""
    y, x = np.mgrid[0:height, 0:width].astype(np.float32)
    unit = min(height, width)
    sky = np.array([0.55, 0.75, 0.92]) - 0.25 * (y / height)[..., None] * np.array([0.6, 0.35, 0.1])
    image = sky + 0.03 * _smooth(rng, height, width)[..., None]
    for depth, base in enumerate((0.38, 0.5, 0.62)):
        waves = sum(
            rng.uniform(0.02, 0.07) * np.sin(2 * np.pi * (x / width * rng.uniform(0.7, 3) + rng.uniform()))
            for _ in range(3)
        )
        hill = y / height > base + waves
        color = np.array([0.36, 0.55, 0.38]) * (0.75 + 0.17 * depth) + np.array([0.05, 0.0, 0.05]) * (2 - depth)
        texture = 0.05 * (1 + depth) * _smooth(rng, height, width, (9, 21, 55, 89))
        image = np.where(hill[..., None], color + texture[..., None], image)
    for _ in range(max(4, width // max(1, unit // 6))):
        w, h = rng.uniform(0.06, 0.14, 2) * unit
        left, top = rng.uniform(0, width - w), rng.uniform(0.55, 0.85) * height
        wall = (x >= left) & (x < left + w) & (y >= top) & (y < top + h)
        roof = (y < top) & (y > top - 0.6 * w) & (np.abs(x - left - w / 2) < (y - top + 0.6 * w))
        window = wall & ((x - left) % (w / 3) > w / 6) & ((y - top) % (h / 2.5) > h / 5)
        color = _COLORS[rng.integers(len(_COLORS))]
        image = np.where(wall[..., None], 0.35 + 0.6 * color, image)
        image = np.where(window[..., None], 0.2, image)
        image = np.where(roof[..., None], 0.55 * color + np.array([0.2, 0.05, 0.05]), image)
    return image.astype(np.float32)


def _ball(image: Image, row: float, column: float, radius: float, color: Image) -> Image:
    """Draws a shaded, antialiased ball over a frame."""
    y, x = np.mgrid[0 : image.shape[0], 0 : image.shape[1]].astype(np.float32)
    distance = np.hypot(y - row, x - column)
    inside = np.clip(radius - distance + 0.5, 0, 1)[..., None]
    light = np.clip(1 - np.hypot(y - row + radius / 3, x - column + radius / 3) / (2 * radius), 0, 1)[..., None]
    stripe = 0.75 + 0.25 * (np.abs(x - column + y - row) % radius > radius / 2)[..., None]
    return image * (1 - inside) + inside * np.clip(color * (0.45 + 0.8 * light) * stripe, 0, 1)


def _static(rng: np.random.Generator, frames: int, height: int, width: int) -> Image:
    scene, unit = _scene(rng, height, width), min(height, width)
    path = np.linspace(0.05, 0.95, frames)
    return np.stack(
        [
            _ball(
                scene,
                height * (0.72 - 0.25 * abs(np.sin(4 * np.pi * position))),
                width * position,
                0.09 * unit,
                _COLORS[0],
            )
            for position in path
        ]
    )


def _pan(rng: np.random.Generator, frames: int, height: int, width: int) -> Image:
    """Pans to the right by half a frame width over the clip, not aligned with any patch grid."""
    scene, unit = _scene(rng, height, width + width // 2 + 1), min(height, width)
    offsets = np.linspace(0, width // 2, frames).round().astype(int)
    return np.stack(
        [
            _ball(
                scene[:, offset : offset + width],
                0.66 * height,
                width * (0.25 + 0.5 * n / frames),
                0.09 * unit,
                _COLORS[3],
            )
            for n, offset in enumerate(offsets)
        ]
    )


def _cuts(rng: np.random.Generator, frames: int, height: int, width: int) -> Image:
    count = min(4, frames)
    scenes = [_scene(rng, height, width).clip(0, 1) ** rng.uniform(0.6, 1.6) for _ in range(count)]
    return np.stack([scenes[n * count // frames] for n in range(frames)])


def _noise(rng: np.random.Generator, frames: int, height: int, width: int) -> Image:
    return rng.random((frames, height, width, 3), dtype=np.float32)


def _bounce(start: float, speed: float, frames: int, low: float, high: float) -> NDArray[np.float64]:
    """Returns positions that move at constant speed and are reflected at both ends."""
    span = max(high - low, 1e-6)
    distance = (start - low + speed * np.arange(frames)) % (2 * span)
    return low + np.where(distance > span, 2 * span - distance, distance)


def _shapes(rng: np.random.Generator, frames: int, height: int, width: int) -> Image:
    y, x = np.mgrid[0:height, 0:width].astype(np.float32)
    unit = min(height, width)
    ground = 0.25 + 0.06 * _smooth(rng, height, width)[..., None] * np.ones(3)
    clip = np.repeat(ground[None], frames, 0)
    for index in range(4):
        radius = rng.uniform(0.08, 0.15) * unit
        rows = _bounce(rng.uniform(radius, height), rng.uniform(0.02, 0.06) * height, frames, radius, height - radius)
        columns = _bounce(rng.uniform(radius, width), rng.uniform(0.02, 0.06) * width, frames, radius, width - radius)
        dy, dx = y - rows[:, None, None], x - columns[:, None, None]
        edge = (np.hypot(dy, dx), np.maximum(abs(dy), abs(dx)), abs(dy) + abs(dx))[index % 3]
        inside = np.clip(radius - edge + 0.5, 0, 1)[..., None]
        clip = clip * (1 - inside) + inside * _COLORS[index]
    return clip.astype(np.float32)


def _moving(rng: np.random.Generator, images: list[Image], frames: int, height: int, width: int) -> Image:
    """Moves and bounces gray images [h,w] over black; overlaps show the maximum."""
    clip = np.zeros((frames, height, width), dtype=np.float32)
    for image in images:
        h, w = image.shape
        rows = _bounce(rng.uniform(0, height), rng.uniform(0.01, 0.05) * height, frames, 0, max(0, height - h))
        columns = _bounce(rng.uniform(0, width), rng.uniform(0.01, 0.05) * width, frames, 0, max(0, width - w))
        for n, (row, column) in enumerate(zip(rows.astype(int), columns.astype(int), strict=True)):
            view = clip[n, row : row + h, column : column + w]
            np.maximum(view, image[: view.shape[0], : view.shape[1]], out=view)
    return np.repeat(clip[..., None], 3, -1)


def _digits(rng: np.random.Generator, frames: int, height: int, width: int) -> Image:
    try:
        from sklearn.datasets import load_digits
    except ImportError:
        raise ValueError("kind='digits' requires scikit-learn; install it with pip install 'fewtokens[eval]'") from None
    import torch.nn.functional as F

    images = load_digits().images
    side = max(4, min(height, width) * 2 // 5)
    digits = torch.from_numpy(images[rng.integers(len(images), size=2)].astype(np.float32) / 16)[:, None]
    large = F.interpolate(digits, (side, side), mode="bicubic", align_corners=False).clamp(0, 1)[:, 0].numpy()
    return _moving(rng, list(large), frames, height, width)


def glyph(digit: int, side: int) -> Image:
    """Renders a digit in Pillow's default typeface, float32 [side,side] in 0..1."""
    from PIL import Image as Pillow
    from PIL import ImageDraw, ImageFont

    image = Pillow.new("L", (side, side))
    font = ImageFont.load_default(size=side)
    ImageDraw.Draw(image).text((side / 2, side / 2), str(digit), fill=255, font=font, anchor="mm")
    return np.asarray(image).astype(np.float32) / np.float32(255)


def _glyphs(rng: np.random.Generator, frames: int, height: int, width: int) -> Image:
    side = max(6, min(height, width) * 2 // 5)
    return _moving(rng, [glyph(digit, side) for digit in rng.integers(10, size=2)], frames, height, width)


_GENERATORS: dict[str, Callable[[np.random.Generator, int, int, int], Image]] = {
    "shapes": _shapes,
    "digits": _digits,
    "glyphs": _glyphs,
    "static": _static,
    "pan": _pan,
    "cuts": _cuts,
    "noise": _noise,
}
KINDS = tuple(_GENERATORS)
"""The names of the clips that `synthetic` generates."""
