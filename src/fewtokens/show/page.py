"""One self-contained HTML page that steps through frames, switches methods and shows the cells of each token."""

from __future__ import annotations

import base64
import html
import io
import json
import math
import re
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


def write_page(clips: Sequence[Clip], path: str | Path, *, title: str = "") -> Path:
    """Writes a page that needs no network and no other file.

    The page holds the frames of each clip once, the regions as numbers that the browser draws, and the rebuilt frames.
    Frames are JPEGs of quality 88; the page computes the error from these.

    Args:
        clips: at least one.
        path: of the page.
        title: heading of the page. Defaults to the clip with its frames and cells, or the names of several clips.

    Returns:
        The path.

    Raises:
        ValueError: there is no clip.
    """
    if not clips:
        raise ValueError("a page requires at least one clip")
    return write_data([_clip(clip) for clip in clips], path, title=title or _title(clips))


def _title(clips: Sequence[Clip]) -> str:
    if len(clips) == 1:
        return f"{clips[0].name}: {len(clips[0].frames)} frames, {clips[0].cells:,} cells"
    return ", ".join(clip.name for clip in clips) if len(clips) <= 3 else f"{len(clips)} clips"


_NOTE = (
    "A color is one token of several cells, the same in every frame; no tint is one token for one cell; dark is "
    "dropped. Point at a cell to see its token."
)


def write_data(clips: Sequence[dict[str, Any]], path: str | Path, *, title: str, note: str = _NOTE) -> Path:
    """Writes the page from clips as plain values, in the form that the page's script reads."""
    data = json.dumps(clips, separators=(",", ":"))
    # A script element ends at the first "</script".
    data = data.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")
    template = resources("fewtokens.show").joinpath("page.html").read_text(encoding="utf-8")
    values = {"title": html.escape(title), "note": html.escape(note), "data": data}
    # In one pass, so that a name such as "{{data}}.mp4" stays text.
    write_text(path, re.sub(r"\{\{(title|note|data)\}\}", lambda match: values[match[1]], template))
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
    assignment = result.tokens.assignment[0].cpu().numpy().astype("<i4")
    return {
        "name": result.name,
        "spec": result.spec,
        "grid": list(result.tokens.grid.shape),
        "source": base64.b64encode(np.ascontiguousarray(assignment).tobytes()).decode(),
        "frames": None if result.frames is None else [as_jpeg(frame) for frame in result.frames],
        "numbers": {heading(name): plain(value) for name, value in result.numbers.items()},
    }


def plain(value: float | int | str) -> float | int | str:
    """Returns text for infinity and NaN, which JSON cannot represent; other values unchanged."""
    if isinstance(value, float) and not math.isfinite(value):
        return "∞" if value > 0 else "-"
    return value


def as_jpeg(frame: Tensor) -> str:
    """Returns a frame uint8 [3,H,W] as the URL of a JPEG."""
    return "data:image/jpeg;base64," + base64.b64encode(jpeg_bytes(frame)).decode()


def jpeg_bytes(frame: Tensor) -> bytes:
    """Returns a frame uint8 [3,H,W] as a JPEG."""
    buffer = io.BytesIO()
    Image.fromarray(frame.permute(1, 2, 0).cpu().numpy()).save(buffer, format="JPEG", quality=88)
    return buffer.getvalue()
