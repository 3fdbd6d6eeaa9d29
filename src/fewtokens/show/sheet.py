"""One picture of everything: frames, and for each method its regions, what comes back, and the error."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from fewtokens.core.files import whole_file
from fewtokens.show.overlay import glow_colours, overlay
from fewtokens.show.types import Clip, Result

_WIDTH, _MARGIN, _GAP = 1240, 24, 3
_INK, _SOFT, _PAPER, _LINE = (28, 30, 36), (105, 110, 122), (255, 255, 255), (225, 227, 232)
ERROR_GAIN = 4


def draw_sheet(clip: Clip, path: str | Path, *, columns: int = 6) -> Path:
    """Draws a clip and all its results on one PNG, two methods side by side.

    Args:
        clip: what to draw; where a result has no frames, only its regions are drawn.
        path: of the PNG.
        columns: frames of each method, spread evenly over the clip.

    Returns:
        The path.
    """
    picked = _spread(len(clip.frames), columns)
    half = (_WIDTH - 3 * _MARGIN) // 2
    small = _fit_width(clip.frames, (half - (len(picked) - 1) * _GAP) // len(picked))
    large = _fit_width(clip.frames, (_WIDTH - 2 * _MARGIN - (len(picked) - 1) * _GAP) // len(picked))
    bands = [_band(clip, result, picked, small) for result in clip.results]
    heights = [max(len(band) for band in bands[i : i + 2]) * (small[0] + _GAP) + 62 for i in range(0, len(bands), 2)]
    sheet = Image.new("RGB", (_WIDTH, 128 + large[0] + 34 + sum(heights) + _MARGIN), _PAPER)
    draw = ImageDraw.Draw(sheet)
    draw.text((_MARGIN, 20), clip.name, fill=_INK, font=_font(26))
    legend = "Each method: regions of its tokens (colour = one token of several cells, dark = dropped)"
    if any(result.frames is not None for result in clip.results):
        legend += f", what the tokens give back, and the error x{ERROR_GAIN}"
    draw.text((_MARGIN, 58), legend, fill=_SOFT, font=_font(15))
    for place, frame in enumerate(picked):
        x = _MARGIN + place * (large[1] + _GAP)
        draw.text((x, 92), clip.caption(frame), fill=_SOFT, font=_font(14))
        sheet.paste(_picture(clip.frames[frame], large), (x, 114))
    y = 114 + large[0] + 34
    for number, (result, band) in enumerate(zip(clip.results, bands, strict=True)):
        x = _MARGIN + (number % 2) * (half + _MARGIN)
        draw.line((x, y, x + half, y), fill=_LINE, width=1)
        draw.text((x, y + 9), result.name, fill=_INK, font=_font(19))
        facts = _facts(result)
        draw.text((x + half - draw.textlength(facts, font=_font(15)), y + 12), facts, fill=_SOFT, font=_font(15))
        for row, images in enumerate(band):
            for column, image in enumerate(images):
                sheet.paste(image, (x + column * (small[1] + _GAP), y + 40 + row * (small[0] + _GAP)))
        if number % 2:
            y += heights[number // 2]
    with whole_file(path) as temporary:
        sheet.save(temporary, format="PNG", optimize=True)
    return Path(path)


def draw_contact_sheet(
    frames: Tensor, captions: Sequence[str], path: str | Path, *, columns: int = 4, most: int = 12
) -> Path:
    """Draws up to `most` frames uint8 [T,3,H,W], spread evenly, in a grid, each with its caption."""
    picked = _spread(len(frames), most)
    columns = min(columns, len(picked))
    size = _fit_width(frames, (_WIDTH - 2 * _MARGIN - (columns - 1) * _GAP) // columns)
    rows = -(-len(picked) // columns)
    sheet = Image.new("RGB", (_WIDTH, 2 * _MARGIN + rows * (size[0] + 26)), _PAPER)
    draw = ImageDraw.Draw(sheet)
    for place, frame in enumerate(picked):
        x = _MARGIN + place % columns * (size[1] + _GAP)
        y = _MARGIN + place // columns * (size[0] + 26)
        draw.text((x, y), captions[frame], fill=_SOFT, font=_font(14))
        sheet.paste(_picture(frames[frame], size), (x, y + 20))
    with whole_file(path) as temporary:
        sheet.save(temporary, format="PNG", optimize=True)
    return Path(path)


def _band(clip: Clip, result: Result, picked: list[int], size: tuple[int, int]) -> list[list[Image.Image]]:
    """Rows of pictures of one method."""
    shown = overlay(clip.frames, result.tokens)
    rows = [[_picture(shown[frame], size) for frame in picked]]
    if result.frames is not None:
        rows.append([_picture(result.frames[frame], size) for frame in picked])
        rows.append([_picture(_error(clip.frames[frame], result.frames[frame]), size) for frame in picked])
    return rows


def _error(frame: Tensor, back: Tensor) -> Tensor:
    """Mean absolute difference over the channels, amplified, as a glow; uint8 [3,H,W]."""
    if back.shape != frame.shape:
        back = F.interpolate(back[None].float(), frame.shape[1:], mode="bilinear", antialias=True)[0]
    gap = ERROR_GAIN * (back.float() - frame.float()).abs().mean(0) / 255
    return (glow_colours(gap.clamp(0, 1)) * 255).round().byte().permute(2, 0, 1)


def _facts(result: Result) -> str:
    parts = []
    if "tokens" in result.numbers:
        parts.append(f"{result.numbers['tokens']} tokens")
    if "retention" in result.numbers:
        parts.append(f"{100 * float(result.numbers['retention']):.1f} %")
    if "psnr_db" in result.numbers:
        parts.append(f"{float(result.numbers['psnr_db']):.1f} dB")
    return "   ".join(parts)


def _spread(count: int, most: int) -> list[int]:
    return torch.linspace(0, count - 1, min(count, most)).round().long().tolist()


def _fit_width(frames: Tensor, width: int) -> tuple[int, int]:
    """Height and width of a picture of this width."""
    return max(1, round(width * frames.shape[2] / frames.shape[3])), width


def _picture(frame: Tensor, size: tuple[int, int]) -> Image.Image:
    image = Image.fromarray(frame.permute(1, 2, 0).cpu().numpy())
    return image.resize((size[1], size[0]), Image.Resampling.LANCZOS)


def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size=size)
