"""Writes frames to a video file."""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction
from itertools import chain, pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fewtokens.core.files import atomic_file
from fewtokens.video.container import reason, url
from fewtokens.video.sound import Sound, add_sound

# Format, and codecs of picture and sound, for each suffix.
_FORMATS = {
    ".mp4": ("mp4", "libx264", "aac"),
    ".mov": ("mov", "libx264", "aac"),
    ".mkv": ("matroska", "libx264", "aac"),
    ".webm": ("webm", "libvpx-vp9", "libopus"),
}


def write(
    path: str | Path,
    frames: Tensor | NDArray[Any] | Iterator[Tensor],
    fps: float,
    *,
    quality: int = 20,
    sound: Sound | None = None,
) -> Path:
    """Writes a video that browsers can play. The write is atomic.

    Args:
        path: output path with the suffix .mp4, .mov, .mkv, .webm or .gif, in lower or upper case.
        frames: [T,3,H,W] or [T,H,W,3], uint8 or float in 0..1; or an iterator of such parts, which are written as they
            come. Since codecs accept only even sizes, the last row or column is repeated for odd ones (except in a
            GIF).
        fps: frames per second, 0.01 to 10,000. GIFs are limited to 50, because browsers slow down faster ones.
        quality: constant rate factor, 0 (best) to 51. Default: 20. Ignored for GIF.
        sound: part of the sound of another file, which is encoded again (AAC, or Opus in WebM). Default: no sound.

    Returns:
        The path.

    Raises:
        ValueError: the suffix is not supported, there are no frames, `fps` or `quality` is out of range, or the codec
            does not support the size, or a GIF is to have sound.
    """
    path = Path(path)
    suffix = path.suffix.lower()
    parts = frames if isinstance(frames, Iterator) else iter([frames])
    first = next(parts, torch.zeros(0, 3, 0, 0))
    pixels = chain([_to_bytes(first)], (_to_bytes(part) for part in parts))
    if not 0.01 <= fps <= 10_000:
        raise ValueError(f"fps must be 0.01 to 10,000, got {fps}")
    if not 0 <= quality <= 51:
        raise ValueError(f"quality must be 0 (best) to 51, got {quality}")
    if suffix == ".gif":
        if sound is not None:
            raise ValueError(f"{path}: a GIF has no sound")
        _write_gif(path, pixels, fps)
    elif suffix in _FORMATS:
        _write_video(path, pixels, fps, quality, sound)
    else:
        raise ValueError(f"{path}: the suffix must be one of {', '.join([*_FORMATS, '.gif'])}, got {suffix!r}")
    return path


def _to_bytes(frames: Tensor | NDArray[Any]) -> NDArray[np.uint8]:
    """uint8 [T,H,W,3]."""
    x = torch.as_tensor(frames).detach().cpu()
    if x.ndim != 4 or 0 in x.shape or 3 not in (x.shape[1], x.shape[3]):
        raise ValueError(f"frames must be [T,3,H,W] or [T,H,W,3] with at least one frame, got {list(x.shape)}")
    if x.shape[1] == 3:
        x = x.permute(0, 2, 3, 1)
    if x.is_floating_point():
        x = (x.clamp(0, 1) * 255).round().byte()
    if x.dtype != torch.uint8:
        raise ValueError(f"frames must be uint8, or float in 0..1, got {x.dtype}")
    return x.contiguous().numpy()


def _frames(first: NDArray[np.uint8], parts: Iterator[NDArray[np.uint8]]) -> Iterator[NDArray[np.uint8]]:
    """Yields the frames of all parts, which must have the size of the first."""
    for part in chain([first], parts):
        if part.shape[1:] != first.shape[1:]:
            raise ValueError(f"all frames must have the same size, got {part.shape[1:3]} after {first.shape[1:3]}")
        yield from part


def _write_video(path: Path, parts: Iterator[NDArray[np.uint8]], fps: float, quality: int, sound: Sound | None) -> None:
    import av

    container_format, codec, sound_codec = _FORMATS[path.suffix.lower()]
    first = next(parts)
    H, W = first.shape[1:3]
    images = (np.pad(image, ((0, H % 2), (0, W % 2), (0, 0)), mode="edge") for image in _frames(first, parts))
    with atomic_file(path) as temporary:
        try:
            with av.open(url(temporary), "w", format=container_format) as container:
                stream: Any = container.add_stream(codec, rate=Fraction(fps).limit_denominator(60000))
                stream.width, stream.height, stream.pix_fmt = W + W % 2, H + H % 2, "yuv420p"
                stream.options = {"crf": str(quality)} | ({"b:v": "0"} if container_format == "webm" else {})
                rest = iter(()) if sound is None else add_sound(container, sound, sound_codec)
                next(rest, None)
                for image in images:
                    container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
                container.mux(stream.encode())
                for _ in rest:
                    pass
        except av.error.FFmpegError as error:
            if isinstance(error, OSError):  # such as a full disk or missing permission
                raise
            raise ValueError(f"{path}: {codec} does not support {W}x{H} at {fps} frames/s ({reason(error)})") from None


def _write_gif(path: Path, parts: Iterator[NDArray[np.uint8]], fps: float) -> None:
    from PIL import Image

    images = [Image.fromarray(image).quantize(256) for image in _frames(next(parts), parts)]
    # Durations are whole hundredths of a second; their sums are those of the frames.
    ends = [round(100 * number / fps) for number in range(len(images) + 1)]
    durations = [max(20, 10 * (end - start)) for start, end in pairwise(ends)]
    with atomic_file(path) as temporary:
        images[0].save(
            temporary,
            format="GIF",
            save_all=True,
            append_images=images[1:],
            duration=durations,
            loop=0,
        )
