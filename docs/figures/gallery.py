"""Draws the images of docs/gallery.md: every method that needs only pixels, on two synthetic clips.

fewtokens demo --out demo
python docs/figures/gallery.py demo
"""

from __future__ import annotations

import sys
from pathlib import Path

from PIL import Image

IMAGES = Path(__file__).parents[1] / "images"


def main(folder: Path) -> None:
    for name in ("static", "pan"):
        with Image.open(folder / f"{name}.png") as sheet:
            # WebP is a sixth of the PNG; a browser shows at most 16,383 pixels of it.
            sheet.save(IMAGES / f"demo_{name}.webp", quality=80, method=6)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
