"""How tokens look in a notebook: which region of each frame every token stands for."""

from __future__ import annotations

import base64
import html
import io
from typing import TYPE_CHECKING

import numpy as np
import torch

if TYPE_CHECKING:
    from fewtokens.core.tokens import Tokens

# Videos and frames that are drawn, and the side of a frame in pixels.
_VIDEOS, _FRAMES, _SIDE = 4, 8, 112


def as_html(tokens: Tokens) -> str:
    """A fragment of HTML that needs nothing else: a row a video, a picture a frame, a color a token.

    Cells of one token have one color in every frame; dropped cells are dark. Where a token stands for several cells its
    color is strong, where it stands for one it is pale.
    """
    rows = []
    for number in range(min(len(tokens), _VIDEOS)):
        one = tokens[number].to(torch.device("cpu"))
        T, H, W = one.grid.shape
        shown = torch.linspace(0, T - 1, min(T, _FRAMES)).round().long().unique()
        regions = one.assignment.reshape(T, H, W)[shown].numpy()
        colors = _colors(one.N, one.sizes[0].numpy())
        pictures = "".join(
            f'<img alt="frame {int(t)}" title="frame {int(t)}" src="{_picture(colors[region])}">'
            for t, region in zip(shown, regions, strict=True)
        )
        facts = f"{int(one.count[0])} tokens of {one.grid.cells} cells"
        rows.append(f"<div>{pictures}<br><small>video {number}: {facts}</small></div>")
    more = f"<small>and {len(tokens) - _VIDEOS} more</small>" if len(tokens) > _VIDEOS else ""
    return f"<div><code>{html.escape(repr(tokens))}</code>{''.join(rows)}{more}</div>"


def _colors(count: int, sizes: np.ndarray) -> np.ndarray:
    """uint8 [count+1,3]; the last row is that of dropped cells, which index -1 takes."""
    hue = (np.arange(count) * 0.6180339887498949) % 1
    strength = np.where(sizes > 1, 0.65, 0.2)
    channels = np.stack([(hue + shift) % 1 for shift in (0, 1 / 3, 2 / 3)], 1)
    wave = 0.5 + 0.5 * np.cos(2 * np.pi * channels)
    colors = 255 * (1 - strength[:, None] * (1 - wave))
    return np.concatenate([colors, np.full((1, 3), 40.0)]).astype(np.uint8)


def _picture(cells: np.ndarray) -> str:
    from PIL import Image

    height, width = cells.shape[:2]
    scale = max(1, _SIDE // max(height, width))
    image = Image.fromarray(cells).resize((width * scale, height * scale), Image.Resampling.NEAREST)
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"
