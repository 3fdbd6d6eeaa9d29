"""Colors, fonts, headers, thumbnails and saving, shared by all sheets."""

from __future__ import annotations

from pathlib import Path

import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from fewtokens.core.files import atomic_file

INK, SOFT, PAPER, LINE = (28, 30, 36), (105, 110, 122), (255, 255, 255), (225, 227, 232)
_TITLE, _CAPTION = 24, 15


def font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size=size)


def spread(count: int, most: int) -> list[int]:
    """At most `most` indices, evenly spread over 0..count-1."""
    return torch.linspace(0, count - 1, min(count, most)).round().long().tolist()


def fit_width(frames: Tensor, width: int) -> tuple[int, int]:
    """Height and width of a thumbnail of this width, in pixels; keeps the aspect ratio of frames [T,3,H,W]."""
    return max(1, round(width * frames.shape[2] / frames.shape[3])), width


def thumbnail(
    frame: Tensor, size: tuple[int, int], resampling: Image.Resampling = Image.Resampling.LANCZOS
) -> Image.Image:
    """A frame uint8 [3,H,W] resized to (height, width)."""
    image = Image.fromarray(frame.permute(1, 2, 0).cpu().numpy())
    return image.resize((size[1], size[0]), resampling)


def wrap(text: str, width: float, size: int) -> list[str]:
    """Breaks text between words into lines of at most `width` pixels at this font size."""
    face, lines = font(size), [""]
    for word in text.split():
        line = f"{lines[-1]} {word}".strip()
        if lines[-1] and face.getlength(line) > width:
            lines.append(word)
        else:
            lines[-1] = line
    return [line for line in lines if line]


def header_height(title: str, caption: str, width: int) -> int:
    """The height in pixels that `draw_header` takes in a column of this width."""
    heights = len(wrap(title, width, _TITLE)) * (_TITLE + 8) + len(wrap(caption, width, _CAPTION)) * (_CAPTION + 6)
    return heights + 10


def draw_header(pen: ImageDraw.ImageDraw, corner: tuple[int, int], title: str, caption: str, width: int) -> None:
    """Writes a title, and a caption below it, into a column of this width."""
    x, y = corner
    for text, size, color, leading in ((title, _TITLE, INK, 8), (caption, _CAPTION, SOFT, 6)):
        for line in wrap(text, width, size):
            pen.text((x, y), line, fill=color, font=font(size))
            y += size + leading


def save_png(image: Image.Image, path: str | Path) -> Path:
    with atomic_file(path) as temporary:
        image.save(temporary, format="PNG")
    return Path(path)
