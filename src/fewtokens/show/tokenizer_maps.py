"""What the tokens of a tokenizer stand for: the attention of its queries, or a map of its codes over time."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from fewtokens.core.tokens import Tokens
from fewtokens.show.canvas import spread
from fewtokens.show.overlay import token_colors
from fewtokens.show.side_by_side import Panels
from fewtokens.show.strips import draw_strips
from fewtokens.show.write import write_overlay
from fewtokens.tokenizers.tokenizer import Tokenizer, pad

# Codes of a token that are drawn, and columns of a .png.
_LEVELS, _COLUMNS = 3, 8


def write_tokenizer_map(
    path: str | Path, frames: Tensor, tokenizer: Tokenizer, *, fps: float = 8.0, name: str = ""
) -> Path:
    """Encodes a video and draws where its tokens lie.

    For tokens of queries, which attend to any cells: on a .png the attention of the first tokens of each frame, in a
    video the token with the most weight in each cell; of a tokenizer with windows, in the first window, one frame for
    each row of cells in time. For tokens of cells: the codes of each cell, with one color for each value, of the first
    three codes of a token; a dropped cell, or one without this code, is black.

    Args:
        path: .png, .mp4 or .gif.
        frames: uint8 [T,3,H,W].
        tokenizer: the tokenizer.
        fps: frames per second of the video.
        name: of the video, for the title of a .png.

    Returns:
        The path.

    Raises:
        ValueError: the tokens are continuous, one per cell, so that there is nothing to draw; or the suffix is
            unknown.
    """
    tokens = tokenizer.encode(frames).to("cpu")
    title = tokenizer.title or tokenizer.spec
    if tokens.attribution is not None:
        return _write_attention(path, frames, tokenizer, tokens, fps, name)
    if tokens.codes is None:
        raise ValueError(
            f"{title}: continuous tokens of cells have neither codes nor attention to draw; show --encoder FOLDER "
            "--with SPEC draws the regions of a method"
        )
    maps, labels = code_maps(frames, tokens, tokenizer)
    sizes = tokenizer.codebook_sizes
    caption = "One color for each value of a code. Neighboring values have no similar colors."
    if len(sizes) > _LEVELS:
        caption += f" The first {_LEVELS} of {len(sizes)} codes of a token."
    if Path(path).suffix.lower() == ".png":
        indices = spread(len(frames), _COLUMNS)
        rows = [("frames", frames[indices])]
        rows += [(label.replace(", ", "\n"), colors[indices]) for label, colors in zip(labels, maps, strict=True)]
        heading = f"Codes on {name}" if name else "Codes"
        return draw_strips(rows, path, title=heading, caption=f"{title}. {caption}", side=max(112, frames.shape[-2]))
    from fewtokens.video import write

    panels = Panels(("frames", *labels), (frames.shape[-2], frames.shape[-1]), f"{title}. {caption}")
    drawn = (
        panels.draw([frame, *colors], f"frame {number + 1} of {len(frames)}")[None]
        for number, (frame, *colors) in enumerate(zip(frames, *maps, strict=True))
    )
    return write(path, drawn, fps)


def code_maps(frames: Tensor, tokens: Tokens, tokenizer: Tokenizer) -> tuple[list[Tensor], list[str]]:
    """Draws the first three codes of the token of each cell.

    Args:
        frames: uint8 [T,3,H,W], the video before padding.
        tokens: the result of `Tokenizer.encode`, with codes; each window is one video of the batch.
        tokenizer: the tokenizer.

    Returns:
        For each code uint8 [T,3,H,W], and its label.
    """
    assert tokens.codes is not None
    T, _, height, width = frames.shape
    grid = tokens.grid
    index = tokens.assignment.clamp(min=0)
    cells = tokens.codes.take_along_dim(index[..., None], 1).masked_fill((tokens.assignment < 0)[..., None], -1)
    windows = cells.reshape(tokens.B, *grid.shape, -1)
    per_window = T if tokenizer.window is None else tokenizer.window
    frame = torch.arange(T)
    _, rows = _rows(tokenizer, per_window)
    down, right = (
        torch.arange(length) // (padded // cells)
        for length, padded, cells in zip(
            (height, width), tokenizer.encoder.pixels(grid)[1:], (grid.H, grid.W), strict=True
        )
    )
    maps, labels = [], []
    for q, size in enumerate(tokenizer.codebook_sizes[:_LEVELS]):
        codes = windows[frame // per_window, rows[frame % per_window].clamp(max=grid.T - 1), ..., q]
        codes = codes[:, down][:, :, right]
        colors = token_colors(size)[codes.clamp(min=0)] * (codes >= 0)[..., None]
        maps.append((colors * 255).round().byte().permute(0, 3, 1, 2))
        labels.append(f"code {q + 1}, {size:,} values")
    return maps, labels


def _rows(tokenizer: Tokenizer, frames: int) -> tuple[Tensor, Tensor]:
    """The first frame of each row of cells in time, and the row of each frame."""
    first, t = int(tokenizer.encoder.first_frame), tokenizer.encoder.stride[0]
    rows = ((torch.arange(frames) - first) // t + first).clamp(min=0)
    starts = ((torch.arange(int(rows[-1]) + 1) - first) * t + first).clamp(min=0)
    return starts, rows


def _write_attention(
    path: str | Path, frames: Tensor, tokenizer: Tokenizer, tokens: Tokens, fps: float, name: str
) -> Path:
    length = len(frames) if tokenizer.window is None else min(len(frames), tokenizer.window)
    starts, _ = _rows(tokenizer, length)
    _, height, width = tokenizer.encoder.pixels(tokens.grid)
    shown = pad(frames[None, starts], (tokens.grid.T, height, width))[0]
    single = tokens.select([0]).replace(meta={"spec": tokenizer.title or tokenizer.spec})
    style = "maps" if Path(path).suffix.lower() == ".png" else "fill"
    rate = max(1.0, fps * len(starts) / length)
    return write_overlay(path, shown, single, times=starts / fps, fps=rate, style=style, name=name)
