"""One self-contained HTML page: step through the frames, switch methods, see each token's cells."""

from __future__ import annotations

import base64
import html
import io
import json
import math
from collections.abc import Sequence
from importlib.resources import files as resources
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from torch import Tensor

from fewtokens.core.files import write_text
from fewtokens.core.keys import heading
from fewtokens.show.types import Clip, Result


def write_page(clips: Sequence[Clip], path: str | Path, *, title: str) -> Path:
    """Writes a page that needs no network and no other file.

    Frames are in it once for each clip, regions as numbers that the browser draws, and what the tokens give
    back as pictures of quality 88; the error that the page shows is between these pictures.

    Args:
        clips: at least one.
        path: of the page.
        title: its heading.
    """
    if not clips:
        raise ValueError("a page needs at least one clip")
    return write_data([_clip(clip) for clip in clips], path, title=title)


_NOTE = (
    "Colour: one token that stands for several cells, the same in every frame. Dark: dropped. "
    "Point at a cell to see its token."
)


def write_data(clips: Sequence[dict[str, Any]], path: str | Path, *, title: str, note: str = _NOTE) -> Path:
    """Writes the page of clips given as plain values, as the page's script reads them."""
    data = json.dumps(clips, separators=(",", ":"))
    # In a script element nothing may look like the end of it.
    data = data.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")
    template = resources("fewtokens.show").joinpath("page.html").read_text(encoding="utf-8")
    page = template.replace("{{title}}", html.escape(title)).replace("{{note}}", html.escape(note))
    page = page.replace("{{data}}", data)
    write_text(path, page)
    return Path(path)


def _clip(clip: Clip) -> dict[str, Any]:
    return {
        "name": clip.name,
        "captions": [clip.caption(frame) for frame in range(len(clip.frames))],
        "size": list(clip.frames.shape[2:]),
        "frames": [as_jpeg(frame) for frame in clip.frames],
        "results": [_result(result) for result in clip.results],
    }


def _result(result: Result) -> dict[str, Any]:
    source = result.tokens.assignment[0].cpu().numpy().astype("<i4")
    return {
        "name": result.name,
        "spec": result.spec,
        "grid": list(result.tokens.grid.shape),
        "source": base64.b64encode(np.ascontiguousarray(source).tobytes()).decode(),
        "frames": None if result.frames is None else [as_jpeg(frame) for frame in result.frames],
        "numbers": {heading(name): plain(value) for name, value in result.numbers.items()},
    }


def plain(value: float | int | str) -> float | int | str:
    """What JSON has no word for, in words."""
    if isinstance(value, float) and not math.isfinite(value):
        return "∞" if value > 0 else "-"
    return value


def as_jpeg(frame: Tensor) -> str:
    buffer = io.BytesIO()
    Image.fromarray(frame.permute(1, 2, 0).cpu().numpy()).save(buffer, format="JPEG", quality=88)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()
