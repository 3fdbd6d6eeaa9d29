"""The HTML view of tokens in a notebook: the region of each frame that a token stands for."""

from __future__ import annotations

import base64
import html
import io
from typing import TYPE_CHECKING

import numpy as np
import torch

if TYPE_CHECKING:
    from fewtokens.core.tokens import Tokens

# Maximum numbers of videos and frames to show, and the side of a frame in pixels.
_VIDEOS, _FRAMES, _SIDE = 4, 8, 112


def as_html(tokens: Tokens) -> str:
    """Returns a self-contained HTML fragment: one row per video, one image per frame, one color per token.

    The cells of a token have the same color in all frames: saturated if the token stands for several cells, pale if it
    stands for one. Dropped cells are dark.
    """
    rows = []
    for index in range(min(len(tokens), _VIDEOS)):
        video = tokens[index].to(torch.device("cpu"))
        T, H, W = video.grid.shape
        frames = torch.linspace(0, T - 1, min(T, _FRAMES)).round().long().unique()
        regions = video.assignment.reshape(T, H, W)[frames].numpy()
        colors = _colors(video.N, video.sizes[0].numpy())
        images = "".join(
            f'<img alt="frame {int(t)}" title="frame {int(t)}" src="{_image_url(colors[region])}">'
            for t, region in zip(frames, regions, strict=True)
        )
        summary = f"{int(video.count[0])} tokens of {video.grid.cells} cells"
        rows.append(f"<div>{images}<br><small>video {index}: {summary}</small></div>")
    more = f"<small>and {len(tokens) - _VIDEOS} more</small>" if len(tokens) > _VIDEOS else ""
    return f"<div><code>{html.escape(repr(tokens))}</code>{''.join(rows)}{more}</div>"


def _colors(count: int, sizes: np.ndarray) -> np.ndarray:
    """Returns one color per token and, at index -1, the color of dropped cells, uint8 [count+1,3]."""
    hue = (np.arange(count) * 0.6180339887498949) % 1
    strength = np.where(sizes > 1, 0.65, 0.2)
    channels = np.stack([(hue + shift) % 1 for shift in (0, 1 / 3, 2 / 3)], 1)
    wave = 0.5 + 0.5 * np.cos(2 * np.pi * channels)
    colors = 255 * (1 - strength[:, None] * (1 - wave))
    return np.concatenate([colors, np.full((1, 3), 40.0)]).astype(np.uint8)


def _image_url(cells: np.ndarray) -> str:
    from PIL import Image

    height, width = cells.shape[:2]
    scale = max(1, _SIDE // max(height, width))
    image = Image.fromarray(cells).resize((width * scale, height * scale), Image.Resampling.NEAREST)
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"
