"""Named rows of thumbnails: samples side by side, and below them the outputs of a model."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from PIL import Image, ImageDraw
from torch import Tensor

from fewtokens.show.canvas import INK, PAPER, draw_header, font, header_height, save_png, thumbnail

_NAMES, _GAP, _MARGIN = 150, 4, 8


def draw_strips(
    rows: Sequence[tuple[str, Tensor]], path: str | Path, *, title: str, caption: str, side: int = 112
) -> Path:
    """Draws named rows with the same number of images on one PNG.

    Args:
        rows: name and uint8 [n,3,H,W].
        path: of the PNG.
        title: of the sheet.
        caption: below the title.
        side: height of an image on the sheet, in pixels.

    Returns:
        The path.
    """
    count, _, height, width = rows[0][1].shape
    size = (side, round(side * width / height))
    full = max(640, _NAMES + count * (size[1] + _GAP) + _GAP)
    top = _MARGIN + header_height(title, caption, full - 2 * _MARGIN)
    sheet = Image.new("RGB", (full, top + len(rows) * (side + _GAP) + _GAP), PAPER)
    pen = ImageDraw.Draw(sheet)
    draw_header(pen, (_MARGIN, _MARGIN), title, caption, full - 2 * _MARGIN)
    for row, (name, images) in enumerate(rows):
        y = top + row * (side + _GAP)
        pen.multiline_text((_MARGIN, y + side // 2 - 9 * (1 + name.count("\n"))), name, fill=INK, font=font(14))
        for column, image in enumerate(images):
            sheet.paste(thumbnail(image, size, Image.Resampling.NEAREST), (_NAMES + column * (size[1] + _GAP), y))
    return save_png(sheet, path)
