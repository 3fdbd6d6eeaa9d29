"""A few methods on one clip in a figure that fits a README: a column for each method."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from PIL import Image, ImageDraw

from fewtokens.show.canvas import INK, LINE, PAPER, SOFT, fit_width, font, save_png, thumbnail, wrap
from fewtokens.show.colors import method_color
from fewtokens.show.overlay import overlay
from fewtokens.show.types import Clip

_MARGIN, _GAP, _TITLE, _HEAD = 36, 10, 140, 84
_LEGEND = ("Color: one token for several cells, in all frames.", "No tint: one token for one cell.", "Dark: dropped.")


def draw_comparison(
    clip: Clip,
    path: str | Path,
    *,
    title: str = "",
    caption: str = "",
    frames: Sequence[int] = (),
    width: int = 2000,
) -> Path:
    """Draws the frames of a clip on the left, and to the right a column for each result.

    A column has the method's name, its tokens and PSNR, and for each frame the regions of the tokens; then the last of
    the frames rebuilt from the tokens, if the results have frames. Show it at half its width for sharp text.

    Args:
        clip: with at least one result, five at most for columns that can be read.
        path: of the PNG.
        title: Defaults to the clip's name.
        caption: one line below the title. Defaults to the size of the clip and the number of its cells.
        frames: indices of the frames. Defaults to two: a sixth of the clip from its start and from its end.
        width: of the figure, in pixels.

    Returns:
        The path.

    Raises:
        ValueError: the clip has no results, or no frame with such an index.
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
    top = _TITLE + _HEAD
    card = Image.new("RGB", (width, top + rows * (size[0] + _GAP) - _GAP + _MARGIN), PAPER)
    pen = ImageDraw.Draw(card)
    pen.rounded_rectangle((0, 0, width - 1, card.height - 1), radius=18, outline=LINE, width=2)
    pen.text((_MARGIN, 26), title or clip.name, fill=INK, font=font(40))
    pen.text((_MARGIN, 82), caption or clip.describe(), fill=SOFT, font=font(27))

    pen.text((_MARGIN, _TITLE), "input", fill=INK, font=font(32))
    pen.text((_MARGIN, _TITLE + 42), f"{clip.cells:,} cells", fill=SOFT, font=font(25))
    for row, index in enumerate(indices):
        y = top + row * (size[0] + _GAP)
        card.paste(thumbnail(clip.frames[index], size), (_MARGIN, y))
        _tag(pen, (_MARGIN, y), clip.caption(index))
    if rebuilt:
        y = top + len(indices) * (size[0] + _GAP)
        for text in _LEGEND:
            for line in wrap(text, column - 8, 25):
                pen.text((_MARGIN, y), line, fill=SOFT, font=font(25))
                y += 31
            y += 12
    for place, result in enumerate(clip.results, start=1):
        x = _MARGIN + place * (column + _GAP)
        pen.rounded_rectangle((x, _TITLE + 8, x + 20, _TITLE + 28), radius=5, fill=method_color(result.name))
        pen.text((x + 30, _TITLE), result.name, fill=INK, font=font(32))
        pen.text((x, _TITLE + 42), result.facts(", "), fill=SOFT, font=font(25))
        regions = overlay(clip.frames, result.tokens)[indices]
        for row, region in enumerate(regions):
            card.paste(thumbnail(region, size), (x, top + row * (size[0] + _GAP)))
        if result.frames is not None:
            y = top + len(indices) * (size[0] + _GAP)
            card.paste(thumbnail(result.frames[indices[-1]], size), (x, y))
            _tag(pen, (x, y), "rebuilt")
    return save_png(card, path)


def _tag(pen: ImageDraw.ImageDraw, corner: tuple[int, int], text: str) -> None:
    """White text on a dark tag in the upper left corner of a thumbnail."""
    x, y = corner
    wide = font(22).getlength(text)
    pen.rounded_rectangle((x + 8, y + 8, x + 24 + wide, y + 42), radius=6, fill=INK)
    pen.text((x + 16, y + 11), text, fill=PAPER, font=font(22))
