"""Sheets: all methods on one clip, or the frames of one clip in a grid."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from PIL import Image, ImageDraw
from torch import Tensor

from fewtokens.show.canvas import (
    INK,
    LINE,
    PAPER,
    SOFT,
    draw_header,
    fit_width,
    font,
    header_height,
    save_png,
    spread,
    thumbnail,
)
from fewtokens.show.colors import method_color
from fewtokens.show.overlay import ERROR_GAIN, error_map, overlay
from fewtokens.show.types import Clip, Result

_WIDTH, _MARGIN, _GAP = 1240, 24, 3


def draw_sheet(clip: Clip, path: str | Path, *, columns: int = 6, caption: str = "") -> Path:
    """Draws a clip and all its results on one PNG, two methods side by side.

    Args:
        clip: its name is the title. For a result without frames only the regions are drawn.
        path: of the PNG.
        columns: frames per method, evenly spread over the clip.
        caption: below the title. Defaults to the size of the clip and the number of its cells.

    Returns:
        The path.
    """
    indices = spread(len(clip.frames), columns)
    half = (_WIDTH - 3 * _MARGIN) // 2
    small = fit_width(clip.frames, (half - (len(indices) - 1) * _GAP) // len(indices))
    large = fit_width(clip.frames, (_WIDTH - 2 * _MARGIN - (len(indices) - 1) * _GAP) // len(indices))
    bands = [_band(clip, result, indices, small) for result in clip.results]
    heights = [max(len(band) for band in bands[i : i + 2]) * (small[0] + _GAP) + 62 for i in range(0, len(bands), 2)]
    text = f"{caption or clip.describe()} {_legend(clip)}"
    top = 20 + header_height(clip.name, text, _WIDTH - 2 * _MARGIN)
    sheet = Image.new("RGB", (_WIDTH, top + 22 + large[0] + 34 + sum(heights) + _MARGIN), PAPER)
    pen = ImageDraw.Draw(sheet)
    draw_header(pen, (_MARGIN, 20), clip.name, text, _WIDTH - 2 * _MARGIN)
    for column, index in enumerate(indices):
        x = _MARGIN + column * (large[1] + _GAP)
        pen.text((x, top), clip.caption(index), fill=SOFT, font=font(14))
        sheet.paste(thumbnail(clip.frames[index], large), (x, top + 22))
    y = top + 22 + large[0] + 34
    for number, (result, band) in enumerate(zip(clip.results, bands, strict=True)):
        x = _MARGIN + (number % 2) * (half + _MARGIN)
        pen.line((x, y, x + half, y), fill=LINE, width=1)
        pen.rounded_rectangle((x, y + 13, x + 13, y + 26), radius=3, fill=method_color(result.name))
        pen.text((x + 21, y + 9), result.name, fill=INK, font=font(19))
        facts = result.facts()
        pen.text((x + half - pen.textlength(facts, font=font(15)), y + 12), facts, fill=SOFT, font=font(15))
        for row, images in enumerate(band):
            for column, image in enumerate(images):
                sheet.paste(image, (x + column * (small[1] + _GAP), y + 40 + row * (small[0] + _GAP)))
        if number % 2:
            y += heights[number // 2]
    return save_png(sheet, path)


def draw_contact_sheet(
    frames: Tensor,
    captions: Sequence[str],
    path: str | Path,
    *,
    title: str,
    caption: str,
    columns: int = 4,
    most: int = 12,
) -> Path:
    """Draws up to `most` frames, evenly spread, in a grid.

    Args:
        frames: uint8 [T,3,H,W].
        captions: one per frame.
        path: of the PNG.
        title: of the sheet.
        caption: below the title.
        columns: of the grid.
        most: the largest number of frames.

    Returns:
        The path.
    """
    indices = spread(len(frames), most)
    columns = min(columns, len(indices))
    size = fit_width(frames, (_WIDTH - 2 * _MARGIN - (columns - 1) * _GAP) // columns)
    rows = -(-len(indices) // columns)
    top = _MARGIN + header_height(title, caption, _WIDTH - 2 * _MARGIN)
    sheet = Image.new("RGB", (_WIDTH, top + _MARGIN + rows * (size[0] + 26)), PAPER)
    pen = ImageDraw.Draw(sheet)
    draw_header(pen, (_MARGIN, _MARGIN), title, caption, _WIDTH - 2 * _MARGIN)
    for cell, index in enumerate(indices):
        x = _MARGIN + cell % columns * (size[1] + _GAP)
        y = top + cell // columns * (size[0] + 26)
        pen.text((x, y), captions[index], fill=SOFT, font=font(14))
        sheet.paste(thumbnail(frames[index], size), (x, y + 20))
    return save_png(sheet, path)


def _legend(clip: Clip) -> str:
    legend = (
        "For each method: tokens, fraction of the cells, PSNR. First row: regions of the tokens; a color is one token "
        "of several cells, the same in all frames; dark is dropped."
    )
    if any(result.frames is not None for result in clip.results):
        legend += (
            f" Second row: the frames rebuilt from the tokens. Third row: the error, amplified {ERROR_GAIN} times."
        )
    return legend


def _band(clip: Clip, result: Result, indices: list[int], size: tuple[int, int]) -> list[list[Image.Image]]:
    """Rows of thumbnails of one method."""
    regions = overlay(clip.frames, result.tokens)
    rows = [[thumbnail(regions[index], size) for index in indices]]
    if result.frames is not None:
        rows.append([thumbnail(result.frames[index], size) for index in indices])
        errors = error_map(clip.frames[indices], result.frames[indices])
        rows.append([thumbnail(error, size) for error in errors])
    return rows
