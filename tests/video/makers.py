"""Writes small video files with PyAV."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import av
import numpy as np


def numbered_frames(n: int, width: int = 64, height: int = 48) -> np.ndarray:
    """Frames with a gray level per index that survives compression, uint8 [n,H,W,3]."""
    level = (np.arange(n) * 7) % 200 + 20
    return np.broadcast_to(level[:, None, None, None], (n, height, width, 3)).astype(np.uint8)


def moving_frames(n: int, width: int = 64, height: int = 48, seed: int = 0) -> np.ndarray:
    """A moving texture, so that encoded frames reference one another; uint8 [n,H,W,3]."""
    rng = np.random.default_rng(seed)
    texture = rng.integers(0, 255, (height, width * 2, 3), dtype=np.uint8)
    texture = np.repeat(np.repeat(texture[::4, ::4], 4, 0), 4, 1)[:height, : width * 2]
    return np.stack([np.roll(texture, -2 * t, 1)[:, :width] for t in range(n)])


def make_video(
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
    audio: bool = False,
    container: dict[str, str] | None = None,
) -> Path:
    """Writes images [T,H,W,3]; `times` are timestamps in milliseconds."""
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
        audio = out.add_stream("aac", rate=8000) if audio else None
        for n, image in enumerate(images):
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(image), format="rgb24")
            frame.pts = n if times is None else times[n]
            frame.time_base = Fraction(1, fps) if times is None else Fraction(1, 1000)
            out.mux(stream.encode(frame))
        out.mux(stream.encode())
        if audio is not None:
            _write_audio(out, audio, len(images) / fps)
    return path


def _write_audio(out, stream, seconds: float) -> None:
    samples = np.zeros((1, int(8000 * seconds)), dtype=np.float32)
    frame = av.AudioFrame.from_ndarray(samples, format="fltp", layout="mono")
    frame.sample_rate = 8000
    frame.pts = 0
    out.mux(stream.encode(frame))
    out.mux(stream.encode())


def make_audio_only(path: Path) -> Path:
    with av.open(str(path), "w") as out:
        _write_audio(out, out.add_stream("aac", rate=8000), 1.0)
    return path


def gray_levels(frames) -> list[int]:
    """Returns the mean gray level of each frame, the inverse of `numbered_frames`."""
    return frames.float().mean((1, 2, 3)).round().int().tolist()
