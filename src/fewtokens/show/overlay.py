"""Drawing tokens over frames."""

from __future__ import annotations

import torch
from torch import Tensor

from fewtokens.core.grid import Grid
from fewtokens.core.tokens import Tokens

STYLES = ("fill", "outline", "mean")
"""The ways to draw a region: tinted, outlined, or filled with the mean of its pixels."""

_DARK = 0.22  # how much of a dropped cell's brightness is left
_TINT = 0.42  # how much of a merged region is its colour


def token_map(tokens: Tokens, frames: int, height: int, width: int) -> Tensor:
    """Which token each pixel went to, int64 [T,height,width]; -1 = dropped.

    Frames and pixels are dealt to cells evenly, so any frame size goes with any grid; several frames may
    share a tubelet.
    """
    grid = tokens.grid
    source = tokens.assignment[0].cpu().reshape(grid.shape)
    t, y, x = (torch.arange(n) * cells // n for n, cells in zip((frames, height, width), grid.shape, strict=True))
    return source[t][:, y][:, :, x]


def overlay(frames: Tensor, tokens: Tokens, style: str = "fill") -> Tensor:
    """Frames with the regions of their tokens, uint8 [T,3,H,W].

    Args:
        frames: uint8 [T,3,H,W].
        tokens: of this video, B=1.
        style: "fill": a token of several cells tints them in its colour, the same in every frame; "outline":
            borders alone; "mean": every token is filled with the mean colour of its pixels over the whole
            video. In all of them dropped cells are dark and grey.

    Raises:
        ValueError: no such style, or tokens of several videos.
    """
    if style not in STYLES:
        raise ValueError(f"style must be one of {', '.join(STYLES)}, got {style!r}")
    if tokens.B != 1:
        raise ValueError(f"an overlay shows one video, got tokens of {tokens.B}")
    T, _, height, width = frames.shape
    ids = token_map(tokens, T, height, width)
    dropped = ids < 0
    label = ids.clamp(min=0)
    image = frames.cpu().float().permute(0, 2, 3, 1) / 255  # [T,H,W,3]
    if style == "mean":
        image = torch.where(dropped[..., None], image, _mean_colours(image, ids, tokens.N)[label])
    elif style == "fill":
        cells = torch.bincount(tokens.assignment[0][tokens.assignment[0] >= 0].cpu(), minlength=tokens.N)
        merged = (cells[label] > 1) & ~dropped
        tinted = image * (1 - _TINT) + _TINT * token_colours(tokens.N)[label]
        image = torch.where(merged[..., None], tinted, image)
    grey = image.mean(-1, keepdim=True) * _DARK
    image = torch.where(dropped[..., None], grey + 0.02, image)
    if style != "mean":
        edge = _borders(ids)[..., None]
        # Light on dark and dark on light.
        line = torch.where(image.mean(-1, keepdim=True) > 0.55, 0.0, 1.0)
        image = torch.where(edge, image * 0.45 + line * 0.55, image)
    return (image.clamp(0, 1) * 255).round().byte().permute(0, 3, 1, 2).contiguous()


def heat(frames: Tensor, tokens: Tokens, token: int) -> Tensor:
    """How much each cell gave to one token of soft attribution, as a glow over the frames; uint8 [T,3,H,W].

    Raises:
        ValueError: the tokens carry no soft weights, or have no such token.
    """
    if tokens.attribution is None:
        raise ValueError("these tokens have no soft weights; overlay() shows hard regions")
    if not 0 <= token < int(tokens.count[0]):
        raise ValueError(f"there are {int(tokens.count[0])} tokens, counted from 0; there is no {token}")
    T, _, height, width = frames.shape
    given = tokens.attribution[0, token].detach().cpu().float().reshape(tokens.grid.shape).clamp(min=0)
    t, y, x = (torch.arange(n) * cells // n for n, cells in zip((T, height, width), tokens.grid.shape, strict=True))
    glow = (given / given.max().clamp(min=1e-12))[t][:, y][:, :, x][..., None]
    image = frames.cpu().float().permute(0, 2, 3, 1) / 255
    image = image.mean(-1, keepdim=True) * 0.5 * (1 - glow) + glow * glow_colours(glow[..., 0])
    return (image.clamp(0, 1) * 255).round().byte().permute(0, 3, 1, 2).contiguous()


def maps(frames: Tensor, tokens: Tokens, *, rows: int = 8, columns: int = 6) -> tuple[Tensor, list[str], int]:
    """The soft weights of each token over its frame: frames side by side, below each the tokens made of it.

    Each map is drawn from its least weight (dark) to its largest (light).

    Args:
        frames: uint8 [T,3,H,W].
        tokens: of this video, B=1, with soft weights.
        rows: tokens of a frame at most; columns: frames at most, spread evenly.

    Returns:
        Pictures uint8 [n,3,H,W] row by row, a caption for each, and the number of columns.

    Raises:
        ValueError: the tokens carry no soft weights.
    """
    if tokens.attribution is None:
        raise ValueError("these tokens have no soft weights, so there are no maps; take style fill, outline or mean")
    T = len(frames)
    picked = torch.linspace(0, T - 1, min(columns, T)).round().long().unique().tolist()
    given = tokens.attribution[0, : int(tokens.count[0])].detach().cpu().reshape(-1, *tokens.grid.shape)
    used = [
        given[:, t * tokens.grid.T // T].flatten(1).abs().sum(1).nonzero().flatten()[:rows].tolist() for t in picked
    ]
    pictures, captions = [frames[t].cpu() for t in picked], [f"frame {t}" for t in picked]
    for row in range(max(map(len, used))):
        for t, made in zip(picked, used, strict=True):
            there = row < len(made)
            one = heat(frames[t : t + 1], _of_frame(tokens, t * tokens.grid.T // T), made[row])[0] if there else None
            pictures.append(torch.zeros_like(frames[t]).cpu() if one is None else one)
            captions.append(f"token {made[row]}" if there else "")
    return torch.stack(pictures), captions, len(picked)


def _of_frame(tokens: Tokens, t: int) -> Tokens:
    """These tokens as if the video had frame t alone, their weights there from the least (0) on."""
    assert tokens.attribution is not None
    cells = slice(t * tokens.grid.cells_per_frame, (t + 1) * tokens.grid.cells_per_frame)
    one = Grid(1, tokens.grid.H, tokens.grid.W)
    own = tokens.attribution[..., cells]
    return tokens.replace(grid=one, assignment=tokens.assignment[:, cells], attribution=own - own.amin(2, keepdim=True))


def token_colours(n: int) -> Tensor:
    """A colour for each of n tokens, float [n,3]: hues by the golden ratio, so that neighbours differ."""
    number = torch.arange(n, dtype=torch.float64)
    hue = (number * 0.6180339887498949) % 1
    value = torch.tensor([1.0, 0.72, 0.88])[torch.arange(n) % 3]  # lightness tells apart what hue does not
    channel = (hue[:, None] * 6 + torch.tensor([5.0, 3, 1])) % 6
    full = 1 - 0.75 * torch.minimum(channel, 4 - channel).clamp(0, 1)
    return (full * value[:, None]).float()


def glow_colours(x: Tensor) -> Tensor:
    """Black over red and orange to white for values of 0..1, float [...,3]."""
    return torch.stack([(x * 2.2).clamp(0, 1), (x * 2.2 - 0.7).clamp(0, 1), (x * 2.6 - 1.7).clamp(0, 1)], -1)


def _mean_colours(image: Tensor, ids: Tensor, n: int) -> Tensor:
    """Mean colour of each token's pixels over all frames, [n,3]."""
    label = ids.flatten() + 1  # slot 0 holds the dropped
    count = torch.bincount(label, minlength=n + 1).clamp(min=1)
    sums = [torch.bincount(label, image[..., c].flatten().double(), minlength=n + 1) for c in range(3)]
    return (torch.stack(sums, -1) / count[:, None])[1:].float()


def _borders(ids: Tensor) -> Tensor:
    """Pixels at the right or lower edge of a region, where another token begins; bool [T,H,W]."""
    edge = torch.zeros_like(ids, dtype=torch.bool)
    edge[:, :, :-1] |= ids[:, :, :-1] != ids[:, :, 1:]
    edge[:, :-1] |= ids[:, :-1] != ids[:, 1:]
    return edge
