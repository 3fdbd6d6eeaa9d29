"""Image files: one frame, or a folder of them."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from fewtokens.video.decode import Progress
from fewtokens.video.select import Size, check_bytes, check_pixels, choose, target_size
from fewtokens.video.types import Video, VideoError

# GIF is read as a video: it has frames and times.
_SUFFIXES = frozenset([".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp", ".ppm", ".pgm"])


def is_image(path: Path) -> bool:
    """Whether the name ends like that of an image file."""
    return path.suffix.lower() in _SUFFIXES


def read_image(path: Path, size: Size | None) -> Video:
    """One frame at time 0."""
    return Video(
        _load(path, size)[None], torch.zeros(1, dtype=torch.float64), None, None, str(path), path.stat().st_size
    )


def read_images(
    folder: Path,
    frames: int | None,
    fps: float | None,
    size: Size | None,
    start: float,
    end: float | None,
    rate: float,
    progress: Progress | None,
) -> Video:
    """The images of a folder in natural order (2 before 10), `rate` a second, all of the first one's size."""
    files = sorted((f for f in folder.iterdir() if is_image(f) and not f.name.startswith(".")), key=_natural)
    if not files:
        raise VideoError(
            f"{folder}: a folder without images ({', '.join(sorted(_SUFFIXES))}); for videos give the files themselves"
        )
    times = np.arange(len(files)) / rate
    chosen = choose(times, frames, fps, start, end, str(folder))
    first = _load(files[int(chosen[0])], size)
    height, width = first.shape[1:]
    check_bytes(len(chosen), height, width, str(folder))
    pictures = [first]
    for done, n in enumerate(chosen[1:], start=2):
        pictures.append(_load(files[int(n)], (height, width)))
        if progress is not None:
            progress(done, len(chosen))
    length = len(files) / rate
    return Video(torch.stack(pictures), torch.from_numpy(times[chosen]), length, rate, str(folder), None)


def _natural(path: Path) -> list[tuple[int, str]]:
    return [(int(part), "") if part.isdigit() else (-1, part.lower()) for part in re.split(r"(\d+)", path.name)]


def _load(path: Path, size: Size | None) -> Tensor:
    """uint8 [3,H,W]: rotated as its EXIF says, transparency over black, resized with antialiasing."""
    from PIL import Image, ImageOps, UnidentifiedImageError

    if path.stat().st_size == 0:
        raise VideoError(f"{path}: is empty (0 bytes)")
    try:
        with Image.open(path) as opened:
            check_pixels(*opened.size, str(path))
            image: Image.Image = ImageOps.exif_transpose(opened)
            if image.mode.startswith("I") or image.mode == "F":
                # 16 bits and more: the range of the type, not of the picture, becomes 0..255.
                values = np.asarray(image, dtype=np.float64) / (1 if image.mode == "F" else 257)
                image = Image.fromarray(values.round().clip(0, 255).astype(np.uint8))
            if "A" in image.getbands() or "transparency" in image.info:
                image = image.convert("RGBA")
                image = Image.alpha_composite(Image.new("RGBA", image.size, (0, 0, 0, 255)), image)
            image = image.convert("RGB")
            height, width = target_size(*image.size, size)
            if (width, height) != image.size:
                image = image.resize((width, height), Image.Resampling.BICUBIC)
            return torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous()
    except (UnidentifiedImageError, Image.DecompressionBombError) as error:
        raise VideoError(f"{path}: not an image that can be read ({error})") from None
    except (OSError, SyntaxError, ValueError) as error:
        if isinstance(error, VideoError):
            raise
        raise VideoError(f"{path}: is cut short or damaged ({error})") from None
