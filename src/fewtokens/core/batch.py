"""Putting tokens together and taking them apart: videos into a batch, frames into a video, chunks in a row."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from fewtokens.core.grid import Grid
from fewtokens.core.plan import Dropped, Plan
from fewtokens.core.tokens import SLOTS, Tokens


def collate(videos: Sequence[Tokens]) -> Tokens:
    """One padded batch of videos that may differ in length and in their number of tokens.

    Args:
        videos: of one video each, or of several; equal H, W and C. `aux` and `meta` are left behind, and so are prefix
            tokens, unless all videos have equally many.

    Raises:
        ValueError: no videos, or frames of different grids (a batch has one H and W).
    """
    if not videos:
        raise ValueError("nothing to collate")
    first = videos[0]
    frames = {(v.grid.H, v.grid.W) for v in videos}
    if len(frames) > 1:
        raise ValueError(f"videos of one batch need equal H and W, got {sorted(frames)}; resize, or run them alone")
    T, N = max(v.grid.T for v in videos), max(v.N for v in videos)
    S = T * first.grid.cells_per_frame

    def stack(name: str, *pads: int, fill: float = 0) -> Tensor | None:
        values = [getattr(v, name) for v in videos]
        if any(value is None for value in values) or (not pads and len({value.shape[1] for value in values}) > 1):
            return None
        sizes = {0: N, 1: S}
        padded = []
        for value in values:
            pad: list[int] = []
            for axis in range(value.ndim - 1, 0, -1):
                wanted = sizes[pads[axis - 1]] if axis <= len(pads) else value.shape[axis]
                pad += [0, wanted - value.shape[axis]]
            padded.append(F.pad(value, pad, value=fill))
        return torch.cat(padded)

    times = None
    if all(v.grid.times is not None for v in videos):
        rows = [one.times for v in videos for one in v.grid.videos(v.B) if one.times is not None]
        times = torch.stack([torch.cat([row, row[-1:].expand(T - len(row))]) for row in rows])
    lengths = torch.tensor([one.T for v in videos for one in v.grid.videos(v.B)])
    grid = Grid(T, first.grid.H, first.grid.W, times, None if bool((lengths == T).all()) else lengths)
    return Tokens(
        features=stack("features", 0),  # type: ignore[arg-type]
        positions=stack("positions", 0),  # type: ignore[arg-type]
        sizes=stack("sizes", 0),  # type: ignore[arg-type]
        mask=stack("mask", 0),  # type: ignore[arg-type]
        assignment=stack("assignment", 1, fill=-1),  # type: ignore[arg-type]
        grid=grid,
        prefix=stack("prefix"),
        codes=stack("codes", 0),
        attribution=stack("attribution", 0, 1),
        dropped=_one_meaning(videos),
    )


def _one_meaning(parts: Sequence[Tokens]) -> Dropped:
    """What dropping means in all of them."""
    meanings = {part.dropped for part in parts}
    if len(meanings) > 1:
        raise ValueError("some tokens were dropped as 'lost', others as 'held'; say which by tokens.replace(dropped=)")
    return meanings.pop()


def trim(tokens: Tokens) -> Tokens:
    """The same tokens without slots that no video of the batch needs (one stays where all are empty)."""
    n = max(1, int(tokens.count.max()))
    if n == tokens.N:
        return tokens
    return tokens.replace(**{name: value[:, :n] for name in SLOTS if (value := getattr(tokens, name)) is not None})


def split_frames(tokens: Tokens) -> Tokens:
    """Every frame of every video as a video of its own: B videos of T frames become B*T of one frame.

    A token belongs to the frame of its position (rounded). A cell whose token lives in another frame is
    marked dropped, and a token counts only its cells of its own frame.
    """
    B, T, HW = tokens.B, tokens.grid.T, tokens.grid.cells_per_frame
    frame = tokens.positions[..., 0].round().long().clamp(0, T - 1)
    frame = frame.masked_fill(~tokens.mask, T)
    count = F.one_hot(frame, T + 1)[..., :T].sum(1)  # [B,T]
    width = int(count.max())
    order = frame.argsort(dim=1, stable=True)
    start = F.pad(count.cumsum(1), (1, 0))[:, :T]  # [B,T]
    slots = torch.arange(width, device=tokens.device)
    real = slots < count[..., None]  # [B,T,width]
    index = (start[..., None] + slots).clamp(max=tokens.N - 1).reshape(B, -1)
    representative = order.gather(1, index).reshape(B, T, width)

    place = torch.full((B, tokens.N + 1), -1, dtype=torch.int64, device=tokens.device)
    rank = torch.arange(tokens.N, device=tokens.device) - F.pad(start, (0, 1)).gather(1, frame.gather(1, order))
    place[:, : tokens.N].scatter_(1, order, rank)
    cell_frame = (torch.arange(tokens.grid.cells, device=tokens.device) // HW).expand(B, -1)
    slot = tokens.assignment.masked_fill(tokens.assignment < 0, tokens.N)
    at_home = F.pad(frame, (0, 1), value=T).gather(1, slot) == cell_frame
    source = place.gather(1, slot).masked_fill(~at_home, -1).reshape(B * T, HW)
    sizes = torch.zeros(B * T, width + 1, device=tokens.device)
    sizes.scatter_add_(1, source.masked_fill(source < 0, width), torch.ones_like(source, dtype=torch.float32))

    def rows(values: Tensor) -> Tensor:
        moved = values.gather(1, representative.reshape(B, -1, 1).expand(-1, -1, values.shape[2]))
        return moved.reshape(B * T, width, -1).masked_fill(~real.reshape(B * T, width, 1), 0)

    positions = rows(tokens.positions) * torch.tensor([0.0, 1.0, 1.0], device=tokens.device)
    return Tokens(
        features=rows(tokens.features),
        positions=positions,
        sizes=sizes[:, :width].clamp(min=1) * real.reshape(B * T, width),
        mask=real.reshape(B * T, width),
        assignment=source,
        grid=Grid(1, tokens.grid.H, tokens.grid.W),
    )


def join_frames(frames: Tokens, T: int, grid: Grid | None = None) -> Tokens:
    """The opposite of `split_frames`: B*T videos of one frame become B videos of T frames.

    Args:
        frames: tokens on a one-frame grid; frame t of video b is number b*T + t, and has none past the video's length.
        T: frames of each video.
        grid: the video's grid where times or lengths are known; its shape must be (T, H, W).
    """
    B, N, H, W = frames.B // T, frames.N, frames.grid.H, frames.grid.W
    grid = Grid(T, H, W) if grid is None else grid
    if frames.grid.T != 1 or grid.shape != (T, H, W) or B * T != frames.B:
        raise ValueError(f"cannot join {frames.B} grids of {frames.grid.shape} to videos of {grid.shape}")
    t = torch.arange(T, device=frames.device)
    positions = frames.positions.reshape(B, T, N, 3).clone()
    positions[..., 0] += t[:, None]
    source = frames.assignment.reshape(B, T, H * W)
    prefix = frames.prefix
    joined = Tokens(
        features=frames.features.reshape(B, T * N, -1),
        positions=positions.reshape(B, T * N, 3),
        sizes=frames.sizes.reshape(B, T * N),
        mask=frames.mask.reshape(B, T * N),
        assignment=torch.where(source < 0, source, source + t[:, None] * N).reshape(B, -1),
        grid=grid,
        prefix=None if prefix is None else prefix.reshape(B, T * prefix.shape[1], -1),
        dropped=frames.dropped,
        aux=frames.aux,
        meta=frames.meta,
    )
    return joined.apply(Plan.keep(joined.mask))


def concatenate(chunks: Sequence[Tokens]) -> Tokens:
    """Chunks of the same videos, one after the other in time, as if they had been read at once.

    Args:
        chunks: equal B and C. Chunks of several resolutions are brought to one reference grid, whose rows and columns
            are the least common multiples of theirs (`Tokens.on`). Prefix tokens are put in a row; `attribution` is
            left behind, and times are unless all have them.

    Raises:
        ValueError: nothing to concatenate; chunks that differ in what dropping means.
    """
    if not chunks:
        raise ValueError("nothing to concatenate")
    H, W = (math.lcm(*(getattr(chunk.grid, axis) for chunk in chunks)) for axis in "HW")
    chunks = [chunk.replace(attribution=None).on(Grid(chunk.grid.T, H, W)) for chunk in chunks]
    frames = tokens = 0
    positions, assignments = [], []
    for chunk in chunks:
        shift = torch.tensor([frames, 0, 0], device=chunk.device)
        positions.append(chunk.positions + shift)
        assignments.append(torch.where(chunk.assignment < 0, chunk.assignment, chunk.assignment + tokens))
        frames, tokens = frames + chunk.grid.T, tokens + chunk.N

    def row(name: str) -> Tensor | None:
        values = [getattr(chunk, name) for chunk in chunks]
        return None if any(value is None for value in values) else torch.cat(values, dim=1)

    times = [chunk.grid.times for chunk in chunks]
    known = all(time is not None for time in times)
    joined = Tokens(
        features=row("features"),  # type: ignore[arg-type]
        positions=torch.cat(positions, dim=1),
        sizes=row("sizes"),  # type: ignore[arg-type]
        mask=row("mask"),  # type: ignore[arg-type]
        assignment=torch.cat(assignments, dim=1),
        grid=Grid(frames, H, W, torch.cat(times, dim=-1) if known else None),  # type: ignore[arg-type]
        prefix=row("prefix"),
        codes=row("codes"),
        dropped=_one_meaning(chunks),
        meta=chunks[0].meta,
    )
    return joined.apply(Plan.keep(joined.mask))
