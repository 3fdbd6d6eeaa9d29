"""Joins and splits `Tokens`: videos into a batch, a video into frames and back, chunks into a video."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from fewtokens.core.conversions import SLOTS
from fewtokens.core.grid import Grid
from fewtokens.core.plan import Dropped, Plan, group_count, readable, take_rows
from fewtokens.core.tokens import Tokens


def collate(videos: Sequence[Tokens]) -> Tokens:
    """Collates videos, which may differ in length and in number of tokens, into one padded batch.

    Args:
        videos: tokens of one or more videos each; H, W and C must be equal. `aux` and `meta` are discarded. Prefix
            tokens are kept only if all videos have the same number of them.

    Returns:
        Tokens of all videos, [B,N,C] with the largest N among them.

    Raises:
        ValueError: `videos` is empty, the grids differ in H or W, or `dropped` differs.
    """
    if not videos:
        raise ValueError("videos must not be empty")
    first = videos[0]
    if len(videos) == 1:
        return first.replace(aux={}, meta={})
    frames = {(v.grid.H, v.grid.W) for v in videos}
    if len(frames) > 1:
        raise ValueError(
            f"videos of one batch must have the same H and W, got {sorted(frames)}; resize them or run them separately"
        )
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
                target = sizes[pads[axis - 1]] if axis <= len(pads) else value.shape[axis]
                pad += [0, target - value.shape[axis]]
            padded.append(F.pad(value, pad, value=fill))
        return torch.cat(padded)

    times = None
    if all(v.grid.times is not None for v in videos):
        rows = [grid.times for v in videos for grid in v.grid.videos(v.B) if grid.times is not None]
        times = torch.stack([torch.cat([row, row[-1:].expand(T - len(row))]) for row in rows])
    lengths = torch.tensor([grid.T for v in videos for grid in v.grid.videos(v.B)])
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
        attribution=_collate_attribution(videos, N, T),
        dropped=_common_dropped(videos),
    )


def _collate_attribution(videos: Sequence[Tokens], N: int, T: int) -> Tensor | None:
    """Attribution [B,N,w*H*W] in the smallest blocks that fit all videos; None if a video has none."""
    if any(v.attribution is None for v in videos):
        return None
    sizes = {(v.block_frames, v.grid.T) for v in videos}
    frames = next(n for n in range(1, T + 1) if all(n >= w and (n % w == 0 or n >= t) for w, t in sizes))
    return torch.cat([F.pad(v.attribution_in_blocks(frames), (0, 0, 0, N - v.N)) for v in videos])


def _common_dropped(parts: Sequence[Tokens]) -> Dropped:
    """Returns the value of `dropped` that all parts share."""
    values = {part.dropped for part in parts}
    if len(values) > 1:
        raise ValueError("dropped must be equal, got 'lost' and 'held'; set it with tokens.replace(dropped=...)")
    return values.pop()


def trim(tokens: Tokens) -> Tokens:
    """Removes trailing slots that are padding in every video; at least one slot remains."""
    n = max(1, int(tokens.count.max()))
    if n == tokens.N:
        return tokens
    return tokens.replace(**{name: value[:, :n] for name in SLOTS if (value := getattr(tokens, name)) is not None})


def split_frames(tokens: Tokens) -> Tokens:
    """Splits B videos of T frames into B*T videos of one frame.

    A token belongs to the frame of its rounded position. Its size counts only its cells in that frame; its cells in
    other frames are marked as dropped. Prefix tokens, codes, `attribution`, `aux` and `meta` are discarded.

    Returns:
        Tokens of B*T videos; frame t of video b has index b*T + t.
    """
    B, T, HW = tokens.B, tokens.grid.T, tokens.grid.cells_per_frame
    frame = tokens.positions[..., 0].round().long().clamp(0, T - 1)
    frame = frame.masked_fill(~tokens.mask, T)
    count = group_count(frame, T + 1)[:, :T]
    num_slots = int(count.max())
    order = frame.argsort(dim=1, stable=True)
    start = F.pad(count.cumsum(1), (1, 0))[:, :T]  # [B,T]
    slots = torch.arange(num_slots, device=tokens.device)
    mask = slots < count[..., None]  # [B,T,num_slots]
    index = (start[..., None] + slots).clamp(max=tokens.N - 1).reshape(B, T * num_slots)
    representative = order.gather(1, index).reshape(B, T, num_slots)

    # The slot of each token within its frame; the extra token at the end collects dropped cells.
    slot_in_frame = torch.full((B, tokens.N + 1), -1, dtype=torch.int64, device=tokens.device)
    rank = torch.arange(tokens.N, device=tokens.device) - F.pad(start, (0, 1)).gather(1, frame.gather(1, order))
    slot_in_frame[:, : tokens.N].scatter_(1, order, rank)
    cell_frame = (torch.arange(tokens.grid.cells, device=tokens.device) // HW).expand(B, -1)
    slot = tokens.assignment.masked_fill(tokens.assignment < 0, tokens.N)
    same_frame = F.pad(frame, (0, 1), value=T).gather(1, slot) == cell_frame
    assignment = slot_in_frame.gather(1, slot).masked_fill(~same_frame, -1).reshape(B * T, HW)
    sizes = torch.zeros(B * T, num_slots + 1, device=tokens.device)
    sizes.scatter_add_(
        1, assignment.masked_fill(assignment < 0, num_slots), torch.ones_like(assignment, dtype=torch.float32)
    )

    def rows(values: Tensor) -> Tensor:
        moved = take_rows(values, representative.reshape(B, T * num_slots))
        return moved.reshape(B * T, num_slots, values.shape[2]).masked_fill(~mask.reshape(B * T, num_slots, 1), 0)

    positions = rows(tokens.positions) * torch.tensor([0.0, 1.0, 1.0], device=tokens.device)
    return Tokens(
        features=rows(tokens.features),
        positions=positions,
        sizes=sizes[:, :num_slots].clamp(min=1) * mask.reshape(B * T, num_slots),
        mask=mask.reshape(B * T, num_slots),
        assignment=assignment,
        grid=Grid(1, tokens.grid.H, tokens.grid.W),
    )


def join_frames(frames: Tokens, T: int, grid: Grid | None = None) -> Tokens:
    """Joins B*T videos of one frame into B videos of T frames; the inverse of `split_frames`.

    Args:
        frames: tokens on a grid of one frame. Frame t of video b has index b*T + t, and no tokens if it is past the
            video's length.
        T: number of frames per video.
        grid: the grid of the videos, with shape (T,H,W); needed only for times and lengths.

    Raises:
        ValueError: the frames do not fit the grid.
    """
    B, N, H, W = frames.B // T, frames.N, frames.grid.H, frames.grid.W
    grid = Grid(T, H, W) if grid is None else grid
    if frames.grid.T != 1 or grid.shape != (T, H, W) or B * T != frames.B:
        raise ValueError(f"cannot join {frames.B} grids of {frames.grid.shape} into videos of {grid.shape}")
    t = torch.arange(T, device=frames.device)
    positions = frames.positions.reshape(B, T, N, 3).clone()
    positions[..., 0] += t[:, None]
    assignment = frames.assignment.reshape(B, T, H * W)
    prefix = frames.prefix
    joined = Tokens(
        features=frames.features.reshape(B, T * N, frames.C),
        positions=positions.reshape(B, T * N, 3),
        sizes=frames.sizes.reshape(B, T * N),
        mask=frames.mask.reshape(B, T * N),
        assignment=torch.where(assignment < 0, assignment, assignment + t[:, None] * N).reshape(B, -1),
        grid=grid,
        prefix=None if prefix is None else prefix.reshape(B, T * prefix.shape[1], -1),
        dropped=frames.dropped,
        aux=frames.aux,
        meta=frames.meta,
    )
    return _without_padding(joined)


def _without_padding(tokens: Tokens) -> Tokens:
    """Removes padding between tokens; the same tokens if there is none."""
    if readable(tokens.mask) and bool(tokens.mask.all()):
        return tokens
    return tokens.apply(Plan.keep(tokens.mask))


def concatenate(chunks: Sequence[Tokens]) -> Tokens:
    """Concatenates consecutive chunks of the same videos along time.

    Chunks of different resolutions are moved to one grid, whose H and W are the least common multiples of theirs (see
    `Tokens.on`). Prefix tokens are concatenated too. `attribution` is discarded, and times are unless every chunk has
    them; `meta` is that of the first chunk.

    Args:
        chunks: in order of time; B and C must be equal.

    Returns:
        Tokens on a grid of all frames.

    Raises:
        ValueError: `chunks` is empty, `dropped` differs, or a chunk but the last has videos of different lengths.
    """
    if not chunks:
        raise ValueError("chunks must not be empty")
    H, W = (math.lcm(*(getattr(chunk.grid, axis) for chunk in chunks)) for axis in "HW")
    chunks = [chunk.replace(attribution=None).to_grid(Grid(chunk.grid.T, H, W)) for chunk in chunks]
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

    lengths = chunks[-1].grid.lengths
    if any(chunk.grid.lengths is not None for chunk in chunks[:-1]):
        raise ValueError("only the last chunk may have videos of different lengths")
    lengths = None if lengths is None else lengths + (frames - chunks[-1].grid.T)
    times = [chunk.grid.times for chunk in chunks]
    has_times = all(time is not None for time in times)
    joined = Tokens(
        features=row("features"),  # type: ignore[arg-type]
        positions=torch.cat(positions, dim=1),
        sizes=row("sizes"),  # type: ignore[arg-type]
        mask=row("mask"),  # type: ignore[arg-type]
        assignment=torch.cat(assignments, dim=1),
        grid=Grid(frames, H, W, torch.cat(times, dim=-1) if has_times else None, lengths),  # type: ignore[arg-type]
        prefix=row("prefix"),
        codes=row("codes"),
        dropped=_common_dropped(chunks),
        meta=chunks[0].meta,
    )
    return _without_padding(joined)
