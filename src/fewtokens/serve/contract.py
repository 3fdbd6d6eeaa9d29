"""The contract between a spec and a serving engine: counts before the encoder, rows and cells after it.

An engine reserves placeholders before it encodes a video, and caches encoder outputs by video. So a spec can be served
only if its number of tokens follows from the grid and its tokens depend on nothing but the video.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from fewtokens.core.grid import Grid
from fewtokens.core.method import Method, Reducer
from fewtokens.core.pipeline import Pipeline
from fewtokens.core.registry import build
from fewtokens.core.shapes import shape_repr
from fewtokens.core.tokens import Tokens

# The cues that an engine can provide: it has the pixels of each cell, but gives no attention or keys of its encoder.
_CUES = ("pixels",)
_STAGES = {
    "frames": "selects frames before decoding; select them in the request",
    "encoder": "acts inside the encoder, which engines run in full",
    "llm": "acts inside the language model, but the paged cache of an engine has every token in every layer",
}
# Squared distances in cells that differ by less are ties. Those of one token are multiples of 1/(number of members).
_TIE = 1e-7
# Larger than the rounding error of a position in cells.
_ROUNDING = 1e-3


@dataclass(frozen=True)
class Reduced:
    """The rows of one video after reduction, sorted by cell.

    Attributes:
        rows: float [K,D], D as in the input of `reduce`.
        cell: int64 [K], the cell whose position each row takes: the only cell of a kept token; otherwise the member
            nearest to the mean position of all members, the earlier of two that are equally near.
        assignment: int64 [S], the row that each cell went to; -1 if it was dropped.
    """

    rows: Tensor
    cell: Tensor
    assignment: Tensor

    __repr__ = shape_repr


@lru_cache(maxsize=64)
def served_pipeline(spec: str) -> Pipeline:
    """Builds a spec that an engine can serve.

    Raises:
        ValueError: the spec is invalid or cannot be served; the message gives the reason.
    """
    methods = build(spec)
    for method in methods:
        if reason := _refusal(method):
            raise ValueError(f"{method.name} cannot be served: it {reason}")
    pipeline = Pipeline(methods)
    if pipeline.planned_count(Grid(2, 4, 4)) is None:
        unknown = next(method for method in methods if method.planned_count(Grid(2, 4, 4)) is None)
        raise ValueError(
            f"{unknown.spec} cannot be served: its number of tokens depends on the video, and an engine needs it "
            "before the encoder runs; set a budget with keep="
        )
    return pipeline


def _refusal(method: Method) -> str | None:
    """Why an engine cannot run a method, or None."""
    if method.stage in _STAGES:
        return _STAGES[method.stage]
    if "text" in method.needs:
        return "depends on the question, but an engine caches encoder outputs by video and reuses them for any question"
    if missing := [cue for cue in method.needs if cue not in _CUES]:
        return f"requires the cue {' and '.join(missing)} of the encoder, which engines do not return"
    if method.learned:
        return "computes new features with weights trained for one model; use a method without weights"
    return None


def planned(spec: str, grid: Grid) -> int:
    """Returns the number of rows that `reduce` leaves of a video, from its grid only.

    Args:
        spec: a chain of methods of the stages pixels and tokens, such as "tome(keep=0.25)".
        grid: the grid of the encoder's rows.

    Raises:
        ValueError: the spec is invalid or cannot be served; the message gives the reason.
    """
    count = served_pipeline(spec).planned_count(grid)
    assert count is not None
    return count


def reduce(spec: str, rows: Tensor, grid: Grid, *, width: int | None = None, pixels: Tensor | None = None) -> Reduced:
    """Reduces the rows of one video to exactly `planned(spec, grid)` rows.

    Args:
        spec: see `planned`.
        rows: float [S,D], one row per cell in raster order. The first `width` columns are the features that methods
            compare; any others, such as DeepStack features, are moved with the same weights (`scissor` and `sttm`,
            whose weights no plan records, average them over the cells of each row).
        grid: the grid of the rows, S = T*H*W.
        width: number of columns with features. Default: D.
        pixels: [S,P,D'], pixels of each cell in 0..1, for methods of the stage pixels; see `CUES`.

    Raises:
        ValueError: the spec cannot be served, the rows do not fit the grid, a method needs pixels that are not given,
            or a method leaves another number of tokens than it planned.
    """
    methods = served_pipeline(spec).methods
    if rows.ndim != 2 or len(rows) != grid.cells:
        raise ValueError(f"a grid of {grid.T} x {grid.H} x {grid.W} has {grid.cells} rows, got {list(rows.shape)}")
    width = rows.shape[1] if width is None else width
    tokens = before = Tokens.from_cells(rows[None, :, :width], grid)
    more = rows[None, :, width:]
    with torch.no_grad():
        for method in methods:
            cues = {"pixels": tokens.pool(pixels[None], before)} if pixels is not None and method.needs else {}
            if isinstance(method, Reducer):
                plan = method.decide(tokens, **cues)
                tokens, more = tokens.apply(plan), tokens.replace(features=more).apply(plan).features
            else:
                earlier, tokens = tokens, method(tokens, **cues)
                more = tokens.pool(more, earlier)
    count = planned(spec, grid)
    if count != tokens.N:
        raise ValueError(f"{spec} must leave {count} of {grid.cells} tokens, but left {tokens.N}")
    reduced = torch.cat([tokens.features[0].to(rows.dtype), more[0]], 1)
    cell, order = _nearest_members(tokens).sort(stable=True)
    row = torch.cat([order.argsort(), order.new_tensor([-1])])  # -1 stays -1
    return Reduced(reduced[order], cell, row[tokens.assignment[0]])


def positions(cell: Tensor, full: Tensor) -> Tensor:
    """Returns the positions of reduced rows: those that their cells have in the full video.

    Args:
        cell: int64 [K], see `Reduced`.
        full: [S,A], positions of all cells on A axes.

    Returns:
        [K,A].
    """
    return full.index_select(0, cell)


def _nearest_members(tokens: Tokens) -> Tensor:
    """The member of each token of one video that is nearest to the token's position, int64 [N]."""
    cells = tokens.grid.positions(tokens.device).double()
    if tokens.attribution is not None:
        return _nearest_weighted(tokens, cells)
    row, cell = tokens.assignment[0], torch.arange(len(cells), device=tokens.device)
    cell = cell[row >= 0]
    row, place = row[cell], cells[cell]
    size = torch.bincount(row, minlength=tokens.N)[:, None]
    mean = cells.new_zeros(tokens.N, 3).index_add_(0, row, place) / size.clamp(min=1)
    # Positions are rounded means, or exact if a token is a copy, which need not be in the middle of its members.
    own = tokens.positions[0].double()
    center = torch.where((own - mean).abs().amax(1, keepdim=True) < _ROUNDING, mean, own)
    distance = (place - center[row]).square().sum(1)
    least = distance.new_full((tokens.N,), torch.inf).scatter_reduce(0, row, distance, "amin")
    near = distance <= least[row] + _TIE
    first = torch.full_like(size[:, 0], len(cells) - 1)
    return first.scatter_reduce(0, row[near], cell[near], "amin")


def _nearest_weighted(tokens: Tokens, cells: Tensor) -> Tensor:
    """The same for tokens that were resampled: their members are the cells with a positive weight."""
    assert tokens.attribution is not None
    weights = tokens.attribution[0].double().clamp(min=0)  # [N,n], n cells of a block of frames
    blocks = tokens.frame[0] // tokens.block_frames
    cell = blocks[:, None] * weights.shape[1] + torch.arange(weights.shape[1], device=tokens.device)
    cell = cell.clamp(max=len(cells) - 1)
    weights = weights / weights.sum(1, keepdim=True)
    mean = (weights[..., None] * cells[cell]).sum(1, keepdim=True)
    distance = (cells[cell] - mean).square().sum(2).masked_fill(weights == 0, torch.inf)
    near = distance <= distance.amin(1, keepdim=True) + _TIE
    return cell.gather(1, near.to(torch.uint8).argmax(1, keepdim=True)).squeeze(1)
