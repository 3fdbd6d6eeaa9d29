"""Rows of small pictures, each row with its name: samples side by side, what was made of them below."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from fewtokens.core.files import whole_file

_NAMES, _GAP, _INK, _PAPER = 150, 4, (28, 30, 36), (255, 255, 255)


def draw_strips(rows: Sequence[tuple[str, Tensor]], path: str | Path, *, side: int = 112) -> Path:
    """Draws named rows of equally many pictures on one PNG.

    Args:
        rows: name and uint8 [n,3,H,W].
        path: of the PNG.
        side: height of a picture on the sheet, in pixels.
    """
    count, _, height, width = rows[0][1].shape
    wide = round(side * width / height)
    sheet = Image.new("RGB", (_NAMES + count * (wide + _GAP) + _GAP, len(rows) * (side + _GAP) + _GAP), _PAPER)
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(size=14)
    for row, (name, pictures) in enumerate(rows):
        y = _GAP + row * (side + _GAP)
        pen.multiline_text((8, y + side // 2 - 9 * (1 + name.count("\n"))), name, fill=_INK, font=font)
        for column, picture in enumerate(pictures):
            image = Image.fromarray(picture.permute(1, 2, 0).cpu().numpy())
            x = _NAMES + column * (wide + _GAP)
            sheet.paste(image.resize((wide, side), Image.Resampling.NEAREST), (x, y))
    with whole_file(path) as temporary:
        sheet.save(temporary, format="PNG", optimize=True)
    return Path(path)
