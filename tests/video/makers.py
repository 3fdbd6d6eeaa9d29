"""Small video files for tests, written with PyAV."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import av
import numpy as np


def numbered(n: int, width: int = 64, height: int = 48) -> np.ndarray:
    """Frames that tell their number: grey levels that survive compression, uint8 [n,H,W,3]."""
    level = (np.arange(n) * 7) % 200 + 20
    return np.broadcast_to(level[:, None, None, None], (n, height, width, 3)).astype(np.uint8)


def moving(n: int, width: int = 64, height: int = 48, seed: int = 0) -> np.ndarray:
    """A texture that moves, so that frames depend on one another."""
    rng = np.random.default_rng(seed)
    texture = rng.integers(0, 255, (height, width * 2, 3), dtype=np.uint8)
    texture = np.repeat(np.repeat(texture[::4, ::4], 4, 0), 4, 1)[:height, : width * 2]
    return np.stack([np.roll(texture, -2 * t, 1)[:, :width] for t in range(n)])


def make(
    path: Path,
    images: np.ndarray,
    *,
    fps: int = 10,
    codec: str = "libx264",
    pixels: str = "yuv420p",
    times: list[int] | None = None,
    gop: int = 12,
    options: dict[str, str] | None = None,
    aspect: Fraction | None = None,
    rotation: int = 0,
    sound: bool = False,
    container: dict[str, str] | None = None,
) -> Path:
    """Writes images [T,H,W,3]; `times` are time stamps in units of 1/1000 s."""
    with av.open(str(path), "w", options=container or {}) as out:
        stream = out.add_stream(codec, rate=fps)
        stream.height, stream.width, stream.pix_fmt = images.shape[1], images.shape[2], pixels
        stream.codec_context.gop_size = gop
        stream.options = {"crf": "8"} | (options or {}) if codec.startswith("libx26") else options or {}
        if aspect:
            stream.codec_context.sample_aspect_ratio = aspect
        if times is not None:
            stream.codec_context.time_base = Fraction(1, 1000)
        if rotation:
            stream.set_display_rotation(rotation)
        voice = out.add_stream("aac", rate=8000) if sound else None
        for n, image in enumerate(images):
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(image), format="rgb24")
            frame.pts = n if times is None else times[n]
            frame.time_base = Fraction(1, fps) if times is None else Fraction(1, 1000)
            out.mux(stream.encode(frame))
        out.mux(stream.encode())
        if voice is not None:
            _sound(out, voice, len(images) / fps)
    return path


def _sound(out, voice, seconds: float) -> None:
    samples = np.zeros((1, int(8000 * seconds)), dtype=np.float32)
    frame = av.AudioFrame.from_ndarray(samples, format="fltp", layout="mono")
    frame.sample_rate = 8000
    frame.pts = 0
    out.mux(voice.encode(frame))
    out.mux(voice.encode())


def only_sound(path: Path) -> Path:
    with av.open(str(path), "w") as out:
        _sound(out, out.add_stream("aac", rate=8000), 1.0)
    return path


def levels(frames) -> list[int]:
    """Mean grey level of each frame, the opposite of `numbered`."""
    return frames.float().mean((1, 2, 3)).round().int().tolist()
