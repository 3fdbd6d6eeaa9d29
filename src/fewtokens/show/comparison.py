"""A figure that fits a README: one clip, and a column for each of a few methods."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from fewtokens.show.canvas import INK, LINE, PAPER, SOFT, fit_width, font, save_png, thumbnail, wrap
from fewtokens.show.colors import method_color
from fewtokens.show.overlay import overlay
from fewtokens.show.types import Clip

_MARGIN, _GAP, _HEAD = 30, 10, 88
_TITLE, _NAME, _TEXT, _TAG = 38, 31, 25, 23  # font sizes
_LEGEND = ("Color: one token for several cells, in all frames.", "No tint: one token for one cell.", "Dark: dropped.")


def draw_comparison(
    clip: Clip,
    path: str | Path,
    *,
    title: str = "",
    caption: str = "",
    frames: Sequence[int] = (),
    width: int = 1660,
) -> Path:
    """Draws the frames of a clip on the left, and to the right a column for each result.

    A column shows the method's name, its tokens and PSNR, for each frame the regions of the tokens, and, if the result
    has frames, the last frame rebuilt from the tokens. Text is sharp if the figure is shown at half its width.

    Args:
        clip: with one to five results; with more, the columns become too narrow to read.
        path: of the PNG.
        title: Defaults to the clip's name.
        caption: below the title. Defaults to the size of the clip and the number of its cells.
        frames: indices of the frames. Defaults to two, one sixth of the clip after its start and before its end.
        width: of the figure, in pixels.

    Returns:
        The path.

    Raises:
        ValueError: the clip has no results, or a frame index is out of range.
    """
    if not clip.results:
        raise ValueError(f"{clip.name}: a comparison requires at least one result")
    count = len(clip.frames)
    indices = list(frames) or list(dict.fromkeys((count // 6, count - 1 - count // 6)))
    if not all(0 <= index < count for index in indices):
        raise ValueError(f"frames must be in 0..{count - 1}, got {indices}")
    column = (width - 2 * _MARGIN - len(clip.results) * _GAP) // (1 + len(clip.results))
    size = fit_width(clip.frames, column)
    rebuilt = any(result.frames is not None for result in clip.results)
    rows = len(indices) + rebuilt
    text = caption or clip.describe()
    legend = [wrap(part, column - 8, _TEXT) for part in _LEGEND]
    next_to = rebuilt and 31 * sum(map(len, legend)) + 6 * len(legend) <= size[0]
    if not next_to:
        text = " ".join([text, *_LEGEND])
    lines = wrap(text, width - 2 * _MARGIN, _TEXT)
    head = 78 + 32 * len(lines) + 14
    top = head + _HEAD
    card = Image.new("RGB", (width, top + rows * (size[0] + _GAP) - _GAP + _MARGIN), PAPER)
    pen = ImageDraw.Draw(card)
    pen.rounded_rectangle((0, 0, width - 1, card.height - 1), radius=18, outline=LINE, width=2)
    pen.text((_MARGIN, 22), title or clip.name, fill=INK, font=font(_TITLE))
    for number, line in enumerate(lines):
        pen.text((_MARGIN, 78 + 32 * number), line, fill=SOFT, font=font(_TEXT))

    pen.text((_MARGIN, head), "input", fill=INK, font=font(_NAME))
    pen.text((_MARGIN, head + 42), f"{clip.cells:,} cells", fill=SOFT, font=font(_TEXT))
    for row, index in enumerate(indices):
        y = top + row * (size[0] + _GAP)
        card.paste(thumbnail(clip.frames[index], size), (_MARGIN, y))
        _tag(pen, (_MARGIN, y), clip.caption(index))
    if next_to:  # next to the rebuilt frames
        y = top + len(indices) * (size[0] + _GAP)
        for part in legend:
            for line in part:
                pen.text((_MARGIN, y), line, fill=SOFT, font=font(_TEXT))
                y += 31
            y += 6
    for number, result in enumerate(clip.results, start=1):
        x = _MARGIN + number * (column + _GAP)
        pen.rounded_rectangle((x, head + 8, x + 20, head + 28), radius=5, fill=method_color(result.name))
        name, face = _fitting(result.name, column - 30, _NAME)
        pen.text((x + 30, head), name, fill=INK, font=face)
        facts, face = _fitting(result.facts(", "), column, _TEXT)
        pen.text((x, head + 42), facts, fill=SOFT, font=face)
        regions = overlay(clip.frames, result.tokens)[indices]
        for row, region in enumerate(regions):
            card.paste(thumbnail(region, size), (x, top + row * (size[0] + _GAP)))
        if result.frames is not None:
            y = top + len(indices) * (size[0] + _GAP)
            card.paste(thumbnail(result.frames[indices[-1]], size), (x, y))
            _tag(pen, (x, y), "rebuilt")
    return save_png(card, path)


def _fitting(text: str, width: int, largest: int) -> tuple[str, ImageFont.FreeTypeFont | ImageFont.ImageFont]:
    """The text with the largest font of at most this size, and at least 14, in which it fits; else it is cut."""
    for size in range(largest, 13, -1):
        if font(size).getlength(text) <= width:
            return text, font(size)
    while font(14).getlength(f"{text}…") > width and text:
        text = text[:-1]
    return f"{text}…", font(14)


def _tag(pen: ImageDraw.ImageDraw, corner: tuple[int, int], text: str) -> None:
    """White text on a dark tag in the upper left corner of a thumbnail."""
    x, y = corner
    width = font(_TAG).getlength(text)
    pen.rounded_rectangle((x + 8, y + 8, x + 24 + width, y + 43), radius=6, fill=INK)
    pen.text((x + 16, y + 11), text, fill=PAPER, font=font(_TAG))
