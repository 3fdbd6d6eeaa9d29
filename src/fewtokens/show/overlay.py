"""Draws the regions of tokens over frames."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from fewtokens.core import checks
from fewtokens.core.tokens import Tokens

STYLES = checks.STYLES
"""The ways to draw a region: tinted, outlined, or filled with the mean of its pixels."""

_DARK = 0.22  # brightness of a dropped cell, as a fraction of the original
_TINT = 0.42  # weight of the color in a merged region
_PART = 8  # frames in one part
ERROR_GAIN = 4
"""By how much `error_map` amplifies errors."""


def token_map(tokens: Tokens, frames: int, height: int, width: int, part: slice = slice(None)) -> Tensor:
    """The token of each pixel of the frames of a part, by default of all, int64 [T,height,width]; -1 = dropped.

    Frames and pixels are split evenly among the cells, so any frame size fits any grid; a tubelet may cover several
    frames.
    """
    grid = tokens.grid
    assignment = tokens.assignment[0].cpu().reshape(grid.shape)
    t, y, x = (torch.arange(n) * cells // n for n, cells in zip((frames, height, width), grid.shape, strict=True))
    return assignment[t[part]][:, y][:, :, x]


def cells_in_frame(tokens: Tokens, row: int) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """The cells of a frame of the grid that have a token, and these tokens.

    Returns:
        y, x: place of each cell, int64 [n].
        ids: the m different tokens, int64 [m], ascending.
        index: which of `ids` each cell has, int64 [n].
        count: cells of each of `ids`, int64 [m].
    """
    cells = tokens.assignment[0].cpu().reshape(tokens.grid.shape)[row]
    y, x = (cells >= 0).nonzero().unbind(1)
    return y, x, *cells[y, x].unique(return_inverse=True, return_counts=True)


def overlay(frames: Tensor, tokens: Tokens, style: str = "fill") -> Tensor:
    """Draws the regions of the tokens over the frames; returns uint8 [T,3,H,W].

    Args:
        frames: uint8 [T,3,H,W].
        tokens: of this video, B=1.
        style: "fill": a token of several cells tints them in its color, the same in every frame; "outline": only the
            borders; "mean": each token is filled with the mean color of its pixels over the full video. In all styles
            dropped cells are dark and gray.

    Raises:
        ValueError: the style is unknown, or the tokens are of several videos.
    """
    return torch.cat(list(overlay_parts(frames, tokens, style)))


def overlay_parts(frames: Tensor, tokens: Tokens, style: str = "fill") -> Iterator[Tensor]:
    """As `overlay`, a few frames at a time, for large frames; raises its errors with the first part."""
    if style not in STYLES:
        raise ValueError(f"style must be one of {', '.join(STYLES)}, got {style!r}")
    if tokens.B != 1:
        raise ValueError(f"an overlay shows one video, got tokens of {tokens.B}")
    T, _, height, width = frames.shape
    parts = [slice(start, start + _PART) for start in range(0, T, _PART)]
    assignment = tokens.assignment[0].cpu()
    cells = torch.bincount(assignment[assignment >= 0], minlength=tokens.N)
    colors = token_colors(tokens.N)
    if style == "mean":
        pairs = ((_unit(frames[part]), token_map(tokens, T, height, width, part)) for part in parts)
        colors = _mean_colors(pairs, tokens.N)
    for part in parts:
        ids = token_map(tokens, T, height, width, part)
        dropped = ids < 0
        label = ids.clamp(min=0)
        image = _unit(frames[part])
        if style == "mean":
            image = torch.where(dropped[..., None], image, colors[label])
        elif style == "fill":
            merged = (cells[label] > 1) & ~dropped
            tinted = image * (1 - _TINT) + _TINT * colors[label]
            image = torch.where(merged[..., None], tinted, image)
        gray = image.mean(-1, keepdim=True) * _DARK
        image = torch.where(dropped[..., None], gray + 0.02, image)
        if style != "mean":
            edge = _borders(ids)[..., None]
            # Light on dark and dark on light.
            line = torch.where(image.mean(-1, keepdim=True) > 0.55, 0.0, 1.0)
            image = torch.where(edge, image * 0.45 + line * 0.55, image)
        yield (image.clamp(0, 1) * 255).round().byte().permute(0, 3, 1, 2).contiguous()


def _unit(frames: Tensor) -> Tensor:
    """Frames in 0..1, float [T,H,W,3]."""
    return frames.cpu().float().permute(0, 2, 3, 1) / 255


def heat(frames: Tensor, tokens: Tokens, token: int) -> Tensor:
    """Draws the attribution weight of each cell in one token as a glow over the frames; returns uint8 [T,3,H,W].

    Args:
        frames: uint8 [T,3,H,W].
        tokens: of this video, B=1, with attribution.
        token: index of the token.

    Raises:
        ValueError: the tokens have no attribution weights, or the index is out of range.
    """
    if tokens.attribution is None:
        raise ValueError("these tokens have no attribution weights; overlay() shows hard regions")
    if not 0 <= token < int(tokens.count[0]):
        raise ValueError(f"token must be in 0..{int(tokens.count[0]) - 1}, got {token}")
    weights = tokens.cell_weights(torch.tensor([token], device=tokens.device))
    return glow(frames, weights.detach().cpu().float().reshape(tokens.grid.shape).clamp(min=0))


def glow(frames: Tensor, weights: Tensor, peak: float | None = None) -> Tensor:
    """Draws nonnegative weights of cells as a glow over frames; returns uint8 [T,3,H,W].

    Args:
        frames: uint8 [T,3,H,W].
        weights: [t,h,w], of a grid that fits the frames as in `token_map`.
        peak: the weight that is drawn brightest. Default: the largest.
    """
    T, _, height, width = frames.shape
    t, y, x = (torch.arange(n) * cells // n for n, cells in zip((T, height, width), weights.shape, strict=True))
    scale = weights.max() if peak is None else torch.tensor(peak)
    light = (weights / scale.clamp(min=1e-12)).clamp(max=1)[t][:, y][:, :, x][..., None]
    image = frames.cpu().float().permute(0, 2, 3, 1) / 255
    image = image.mean(-1, keepdim=True) * 0.5 * (1 - light) + light * glow_colors(light[..., 0])
    return (image.clamp(0, 1) * 255).round().byte().permute(0, 3, 1, 2).contiguous()


def maps(
    frames: Tensor, tokens: Tokens, *, times: Tensor | None = None, rows: int = 8, columns: int = 6
) -> tuple[Tensor, list[str], int]:
    """Draws the attribution weights of each token over its frame: frames side by side, and below each frame its tokens.

    Each map runs from the smallest weight of the token in this frame (black) to the largest weight (white).

    Args:
        frames: uint8 [T,3,H,W].
        tokens: of this video, B=1, with attribution.
        times: of the frames in seconds, for the captions.
        rows: largest number of tokens per frame.
        columns: largest number of frames, evenly spread.

    Returns:
        Images uint8 [n,3,H,W] row by row, a caption for each, and the number of columns.

    Raises:
        ValueError: the tokens have no attribution weights.
    """
    if tokens.attribution is None:
        raise ValueError(
            "these tokens have no attribution weights, which maps require; use style fill, outline or mean"
        )
    T = len(frames)
    indices = torch.linspace(0, T - 1, min(columns, T)).round().long().unique().tolist()
    count, (_, H, W) = int(tokens.count[0]), tokens.grid.shape
    weights = [
        tokens.cell_weights(frames=torch.tensor([t * tokens.grid.T // T]))[0, :count].detach().cpu().float()
        for t in indices
    ]
    used = [part.abs().sum(1).nonzero().flatten()[:rows].tolist() for part in weights]
    images = [frames[t].cpu() for t in indices]
    captions = [f"frame {t}" if times is None else f"{float(times[t]):.2f} s" for t in indices]
    for row in range(max(map(len, used))):
        for t, part, ids in zip(indices, weights, used, strict=True):
            if row < len(ids):
                above = part[ids[row]] - part[ids[row]].min()
                images.append(glow(frames[t : t + 1], above.reshape(1, H, W))[0])
                captions.append(f"token {ids[row]}")
            else:
                images.append(torch.zeros_like(frames[t]).cpu())
                captions.append("")
    return torch.stack(images), captions, len(indices)


def error_map(frames: Tensor, rebuilt: Tensor) -> Tensor:
    """Draws the absolute error, the mean over the channels amplified 4 times, as a glow; returns uint8 [T,3,H,W].

    Args:
        frames: uint8 [T,3,H,W].
        rebuilt: uint8 [T,3,h,w], resized to the frames if its size differs.
    """
    rebuilt = rebuilt.float()
    if rebuilt.shape[-2:] != frames.shape[-2:]:
        rebuilt = F.interpolate(rebuilt, frames.shape[-2:], mode="bilinear", antialias=True)
    error = ERROR_GAIN * (rebuilt - frames.float()).abs().mean(1) / 255
    return (glow_colors(error.clamp(0, 1)) * 255).round().byte().permute(0, 3, 1, 2)


def token_colors(n: int) -> Tensor:
    """A color for each of n tokens, float [n,3]: hues by the golden ratio, so that consecutive tokens differ."""
    index = torch.arange(n, dtype=torch.float64)
    hue = (index * 0.6180339887498949) % 1
    value = torch.tensor([1.0, 0.72, 0.88])[torch.arange(n) % 3]  # lightness separates similar hues
    channel = (hue[:, None] * 6 + torch.tensor([5.0, 3, 1])) % 6
    full = 1 - 0.75 * torch.minimum(channel, 4 - channel).clamp(0, 1)
    return (full * value[:, None]).float()


def glow_colors(x: Tensor) -> Tensor:
    """Colors from black through red and orange to white for values in 0..1, float [...,3]."""
    return torch.stack([(x * 2.2).clamp(0, 1), (x * 2.2 - 0.7).clamp(0, 1), (x * 2.6 - 1.7).clamp(0, 1)], -1)


def _mean_colors(parts: Iterable[tuple[Tensor, Tensor]], n: int) -> Tensor:
    """Mean color of each token's pixels over all frames, [n,3], from parts of the frames and their token maps."""
    count, sums = torch.zeros(n + 1), torch.zeros(n + 1, 3, dtype=torch.float64)
    for image, ids in parts:
        label = ids.flatten() + 1  # row 0 is the dropped pixels
        count += torch.bincount(label, minlength=n + 1)
        channels = [torch.bincount(label, image[..., c].flatten().double(), minlength=n + 1) for c in range(3)]
        sums += torch.stack(channels, -1)
    return (sums / count.clamp(min=1)[:, None])[1:].float()


def _borders(ids: Tensor) -> Tensor:
    """Pixels at the right or lower edge of a region, where another token begins; bool [T,H,W]."""
    edge = torch.zeros_like(ids, dtype=torch.bool)
    edge[:, :, :-1] |= ids[:, :, :-1] != ids[:, :, 1:]
    edge[:, :-1] |= ids[:, :-1] != ids[:, 1:]
    return edge
