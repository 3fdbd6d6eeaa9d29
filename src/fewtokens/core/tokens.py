"""The three types that everything here is built on: Grid, Plan and Tokens. Start reading here.

Every compressor decides which source cells go to which token (`Plan`); one function, `Tokens.apply`, moves
the features. The axis letters, used in every shape comment of the project:

    B  videos of a batch (always videos; time is inside the grid)
    N  tokens that go in        M  tokens that come out
    T  frames (or tubelets) of the grid, H rows, W columns
    S  source cells, S = T*H*W, in raster order: cell = (t*H + y)*W + x
    C  channels of a feature    P  prefix tokens (class and register tokens)
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, TypedDict

import torch
import torch.nn.functional as F
from torch import Tensor

from fewtokens.core import files
from fewtokens.core.grid import Grid
from fewtokens.core.plain import conform
from fewtokens.core.plan import Plan, by_position, follow, sums

__all__ = ["Grid", "Packed", "Plan", "Tokens"]

# The nearest kept token is searched in blocks of cells, so that no distance table grows past this many
# entries (64 MiB in float32).
_DISTANCES_AT_ONCE = 1 << 24
# Everything of Tokens that has a row for each video.
_TENSORS = ("features", "positions", "sizes", "mask", "assignment", "prefix", "codes", "attribution")
_FLOATS = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
_DTYPES = {
    "features": _FLOATS, "prefix": _FLOATS, "positions": (torch.float32,), "sizes": (torch.float32,),
    "attribution": _FLOATS, "mask": (torch.bool,), "assignment": (torch.int64,), "codes": (torch.int64,),
}  # fmt: skip


class _Shape(TypedDict):
    shape: tuple[int, int, int]
    times: list[float] | list[list[float]] | None
    lengths: list[int] | None


class Header(TypedDict):
    """What the header of a token file says beside the versions."""

    grid: _Shape
    meta: dict[str, Any]


class Packed(NamedTuple):
    """Ragged tokens without padding: `features` [sum of counts, C] and `cu_seqlens` int32 [B+1]."""

    features: Tensor
    cu_seqlens: Tensor
    max_count: int


@dataclass(frozen=True, eq=False)
class Tokens:
    """Tokens of a batch of videos, with what each stands for.

    Args:
        features: [B,N,C] float. Padded slots are ignored by everyone.
        positions: [B,N,3] float32, (t,y,x) in source cells; the size-weighted mean of the members.
        sizes: [B,N] float32, how many source cells a token stands for.
        mask: [B,N] bool, True = real; real ones come first.
        assignment: [B,S] int64, which token each source cell went to; -1 = dropped.
        grid: the source cells.
        prefix: [B,P,C] class and register tokens, never reduced, or None.
        codes: [B,N] int64 discrete ids, or None.
        attribution: [B,N,S] float, how much each source cell gave to each token (soft attribution), or None
            where `assignment` says it all.
        aux: named scalar losses and statistics.
        meta: plain values that travel with the tokens into a file: spec, encoder, source file, seed.
    """

    features: Tensor
    positions: Tensor
    sizes: Tensor
    mask: Tensor
    assignment: Tensor
    grid: Grid
    prefix: Tensor | None = None
    codes: Tensor | None = None
    attribution: Tensor | None = None
    aux: dict[str, Tensor] = field(default_factory=dict)
    meta: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.features.ndim != 3:
            raise ValueError(f"features must be [B,N,C], got {list(self.features.shape)}")
        B, N, C = self.features.shape
        expected = {"positions": (B, N, 3), "sizes": (B, N), "mask": (B, N), "assignment": (B, self.grid.cells)}
        if self.codes is not None:
            expected["codes"] = (B, N)
        if self.attribution is not None:
            expected["attribution"] = (B, N, self.grid.cells)
        if self.prefix is not None:
            # A method may have given the tokens other channels than the class token has.
            expected["prefix"] = (B, *self.prefix.shape[1:]) if self.prefix.ndim == 3 else (B, 0, C)
        for name, shape in expected.items():
            found = tuple(getattr(self, name).shape)
            if found != shape:
                raise ValueError(f"{name} must be {list(shape)}, got {list(found)}")

    @staticmethod
    def from_cells(features: Tensor, grid: Grid | None = None, prefix: Tensor | None = None) -> Tokens:
        """One token for each cell.

        Args:
            features: [B,T,H,W,C], or [B,S,C] with a `grid`.
            grid: needed for [B,S,C], or to give times and lengths.
            prefix: [B,P,C] or None.
        """
        if grid is None:
            if features.ndim != 5:
                raise ValueError(f"features must be [B,T,H,W,C] without a grid, got {list(features.shape)}")
            grid = Grid(*features.shape[1:4])
        B, C = features.shape[0], features.shape[-1]
        features = features.reshape(B, -1, C)
        if features.shape[1] != grid.cells:
            raise ValueError(f"the grid has {grid.cells} cells, the features have {features.shape[1]}")
        mask = grid.exists(B, features.device)
        index = torch.arange(grid.cells, device=features.device).expand(B, -1)
        return Tokens(
            features=features,
            positions=grid.positions(features.device).expand(B, -1, -1) * mask[..., None],
            sizes=mask.float(),
            mask=mask,
            assignment=index.masked_fill(~mask, -1),
            grid=grid,
            prefix=prefix,
        )

    @property
    def B(self) -> int:
        return self.features.shape[0]

    @property
    def N(self) -> int:
        return self.features.shape[1]

    @property
    def C(self) -> int:
        return self.features.shape[2]

    @property
    def device(self) -> torch.device:
        return self.features.device

    @property
    def count(self) -> Tensor:
        """Real tokens of each video, int64 [B]."""
        return self.mask.sum(1)

    @property
    def num_prefix(self) -> int:
        return 0 if self.prefix is None else self.prefix.shape[1]

    @property
    def cell(self) -> Tensor:
        """The source cell nearest to each token's position, int64 [B,N]; 0 in padded slots."""
        limit = torch.tensor(self.grid.shape, device=self.device) - 1
        t, y, x = self.positions.round().long().clamp(min=0).minimum(limit).unbind(2)
        return (t * self.grid.H + y) * self.grid.W + x

    @property
    def frame(self) -> Tensor:
        """The frame of each token's position, int64 [B,N]; 0 in padded slots."""
        return self.cell // self.grid.cells_per_frame

    def previous_frame_index(self) -> Tensor:
        """The token that covers the same place one frame before, int64 [B,N]; -1 where there is none.

        Also right after an earlier reduction: the assignment says who stands for the cell before.
        """
        before = self.cell - self.grid.cells_per_frame
        found = self.assignment.gather(1, before.clamp(min=0)).masked_fill((before < 0) | ~self.mask, -1)
        itself = torch.arange(self.N, device=self.device)
        return found.masked_fill(found == itself, -1)

    def require_full_grid(self, caller: str) -> Tokens:
        """These tokens if there is still one for every cell; otherwise a ValueError in the name of `who`."""
        index = torch.arange(self.grid.cells, device=self.device)
        if self.grid.cells != self.N or not bool(((self.assignment == index) | ~self.mask).all()):
            raise ValueError(f"{caller} works on whole frames: put it before methods that drop or merge tokens")
        return self

    def replace(self, **changes: Any) -> Tokens:
        return replace(self, **changes)

    def to(self, *args: Any, **kwargs: Any) -> Tokens:
        """Moves to a device, or changes the dtype of the features (positions and sizes stay float32)."""
        features = self.features.to(*args, **kwargs)
        changes: dict[str, Any] = {"features": features}
        if self.prefix is not None:
            changes["prefix"] = self.prefix.to(*args, **kwargs)
        for name in ("positions", "sizes", "mask", "assignment", "codes", "attribution"):
            value = getattr(self, name)
            changes[name] = None if value is None else value.to(features.device)
        changes["aux"] = {name: value.to(features.device) for name, value in self.aux.items()}
        return replace(self, **changes)

    def apply(self, plan: Plan) -> Tokens:
        """Moves the tokens as the plan says: the only place that gathers, averages or scatters features.

        Merging conserves mass: `sizes` sums to the cells kept, and sum(sizes * features) stays the same.
        `assignment` is chained, so it always leads from the original cells to the tokens at hand.
        Differentiable in the features (and in soft weights).
        """
        if plan.weights is not None:
            return self._apply_soft(plan)
        assert plan.dest is not None
        plan = replace(plan, dest=plan.dest.masked_fill(~self.mask, -1))
        assert plan.dest is not None
        changes: dict[str, Any] = {}
        if plan.representative is not None:
            sizes = sums(self.sizes[..., None], plan.dest, plan.num_slots).squeeze(2)
            changes["codes"] = None if self.codes is None else self.codes.gather(1, plan.representative)
            move = plan.move
        else:
            wide = self.sizes.double() if self.features.dtype == torch.float64 else self.sizes
            share, sizes = plan.shares(wide)
            changes["codes"] = None
            move = partial(plan.average, share=share)
        return replace(
            self,
            features=move(self.features),
            positions=move(self.positions),
            sizes=sizes.to(self.sizes.dtype),
            mask=torch.arange(plan.num_slots, device=self.device) < plan.count.to(self.device)[:, None],
            assignment=follow(plan.dest, self.assignment),
            attribution=None if self.attribution is None else move(self.attribution),
            **changes,
        )

    def _apply_soft(self, plan: Plan) -> Tokens:
        assert plan.weights is not None
        weights = plan.weights * self.mask[:, None]  # [B,M,N]
        # A token's size is spread over the outputs that use it, so that sizes still sum to the cells used.
        owned = weights.detach().float().clamp(min=0)
        share = owned / owned.sum(1, keepdim=True).clamp(min=1e-12)
        centre = owned / owned.sum(2, keepdim=True).clamp(min=1e-12)
        best = share.argmax(1).masked_fill(share.sum(1) == 0, -1)  # [B,N]
        if self.attribution is None:
            per_cell = (weights / self.sizes.clamp(min=1e-12)[:, None]).gather(
                2, self.assignment.clamp(min=0)[:, None].expand(-1, plan.num_slots, -1)
            ) * (self.assignment >= 0)[:, None]
        else:
            per_cell = weights.to(self.attribution.dtype) @ self.attribution
        return replace(
            self,
            features=replace(plan, weights=weights).move(self.features),
            positions=centre @ self.positions,
            sizes=(share @ self.sizes[..., None]).squeeze(2),
            mask=torch.arange(plan.num_slots, device=self.device) < plan.count.to(self.device)[:, None],
            assignment=best.gather(1, self.assignment.clamp(min=0)).masked_fill(self.assignment < 0, -1),
            codes=None,
            attribution=per_cell,
        )

    def pool(self, values: Tensor, before: Tokens | None = None) -> Tensor:
        """Brings a tensor with a row for each earlier token to the tokens at hand, [B,N',...] to [B,N,...].

        A row becomes the mean of the rows that its token was made from: weighted by their sizes where tokens were
        dropped or merged, and by `attribution`, as positions are, where they were resampled. Rows of
        padded slots, and of tokens that nothing is attributed to, are zero. Summed in float32 (float64 stays) and
        given back in the dtype of `values`.

        Args:
            values: [B,N',...], a row for each token of `before`, or for each source cell without it.
            before: the tokens that these were made from, by any number of methods.

        Raises:
            ValueError: `before` was resampled itself, so that its cells do not say what became of its tokens.
        """
        if before is self:
            return values
        if before is None:
            before = Tokens.from_cells(self.features.new_zeros(self.B, self.grid.cells, 1), self.grid)
        if before.attribution is not None:
            raise ValueError(
                "a resampled token is no set of cells, so what has a row for each one cannot follow later methods: "
                "give rows for the tokens from before the resampler, and run the whole chain at once"
            )
        rows = values.reshape(*values.shape[:2], -1)
        if self.attribution is None:
            moved = Plan.from_assignment(before, self).move(rows, before.sizes)
        else:
            wide = torch.float64 if values.dtype == torch.float64 else torch.float32
            there = self.mask[..., None] & (before.assignment >= 0)[:, None]
            owned = self.attribution.to(wide).clamp(min=0) * there
            cells = rows[torch.arange(self.B, device=rows.device)[:, None], before.assignment.clamp(min=0)].to(wide)
            moved = (owned / owned.sum(2, keepdim=True).clamp(min=1e-12) @ cells).to(values.dtype)
        return moved.reshape(self.B, self.N, *values.shape[2:])

    def ordered(self) -> Tokens:
        """The same tokens by mean time, then row, then column."""
        order = by_position(self.positions, self.mask)
        dest = order.argsort(dim=1).masked_fill(~self.mask, -1)
        return self.apply(Plan(self.count, self.N, dest, order))

    def unmerge(self, fill: str = "nearest", *, time_weight: float = 1.0) -> Tensor:
        """Back to the grid: each cell gets the feature of the token it went to, [B,T,H,W,C].

        Frames past a video's length are zero. Differentiable. Distances are taken in blocks of bounded memory.

        Args:
            fill: what a dropped cell takes. "nearest": the nearest token, by Euclidean distance between the
                cell and the tokens' positions, in cells; the first of equals. "hold": the token that stood at
                the same place last, for methods that drop what has not changed; the nearest where there was
                none.
            time_weight: a step along time in cells, for the distance.
        """
        if fill not in ("nearest", "hold"):
            raise ValueError(f"a dropped cell is filled by 'nearest' or 'hold', not {fill!r}")
        assignment = self.assignment
        exists = self.grid.exists(self.B, self.device)
        if fill == "hold":
            by_time = assignment.reshape(self.B, self.grid.T, -1)
            frame = torch.arange(self.grid.T, device=self.device)[:, None].expand_as(by_time)
            last = frame.where(by_time >= 0, -1).cummax(dim=1).values
            held = by_time.gather(1, last.clamp(min=0)).masked_fill(last < 0, -1)
            assignment = held.reshape(assignment.shape).masked_fill(~exists, -1)
        lost = (assignment < 0) & exists
        if lost.any():
            assignment = torch.where(lost, self._nearest(lost, time_weight), assignment)
        cells = self.features.gather(1, assignment.clamp(min=0)[..., None].expand(-1, -1, self.C))
        cells = cells.masked_fill((assignment < 0)[..., None], 0)
        return cells.reshape(self.B, *self.grid.shape, self.C)

    def _nearest(self, lost: Tensor, time_weight: float) -> Tensor:
        """Nearest real token of every cell that some video lost, int64 [B,S]."""
        scale = torch.tensor([time_weight, 1.0, 1.0], device=self.device)
        cells = self.grid.positions(self.device) * scale
        tokens = (self.positions * scale).masked_fill(~self.mask[..., None], torch.inf)
        nearest = self.assignment.new_full(self.assignment.shape, -1)
        wanted = lost.any(0).nonzero().squeeze(1)
        for block in wanted.split(max(1, _DISTANCES_AT_ONCE // (self.B * self.N))):
            # Not by matrix product: positions are small exact numbers, and ties must stay ties.
            distance = sum((cells[block, axis][None, :, None] - tokens[:, None, :, axis]).square() for axis in range(3))
            nearest[:, block] = distance.argmin(2)  # type: ignore[union-attr]
        return nearest

    def packed(self) -> Packed:
        """The real tokens of all videos one after the other, for kernels that take `cu_seqlens`."""
        count = self.count
        return Packed(
            self.features[self.mask],
            F.pad(count.cumsum(0), (1, 0)).to(torch.int32),
            int(count.max()) if self.B else 0,
        )

    def with_packed(self, features: Tensor) -> Tokens:
        """These tokens with new features given in packed form, [sum of counts, C']."""
        padded = features.new_zeros(self.B, self.N, features.shape[1])
        padded[self.mask] = features
        return replace(self, features=padded)

    def select(self, index: Tensor | Sequence[int]) -> Tokens:
        """The videos with these numbers, in this order."""
        index = torch.as_tensor(index, dtype=torch.int64, device=self.device)
        changes: dict[str, Any] = {
            name: None if getattr(self, name) is None else getattr(self, name)[index] for name in _TENSORS
        }
        return replace(self, grid=self.grid.select(index), **changes)

    def __getitem__(self, video: int) -> Tokens:
        """One video alone, without padding."""
        one = self.select([video])
        (grid,) = one.grid.videos(1)
        n = int(one.mask.sum())
        return replace(
            one,
            grid=grid,
            features=one.features[:, :n],
            positions=one.positions[:, :n],
            sizes=one.sizes[:, :n],
            mask=one.mask[:, :n],
            assignment=one.assignment[:, : grid.cells],
            codes=None if one.codes is None else one.codes[:, :n],
            attribution=None if one.attribution is None else one.attribution[:, :n, : grid.cells],
        )

    def __iter__(self) -> Iterator[Tokens]:
        return (self[b] for b in range(self.B))

    def check(self) -> Tokens:
        """Looks at the data and raises ValueError where it breaks a promise of this type."""
        self.grid.videos(self.B)
        problems = {
            "real tokens must come first in the mask": not bool((self.mask[:, :-1] >= self.mask[:, 1:]).all()),
            "an assignment points past the real tokens": bool((self.assignment >= self.count[:, None]).any()),
            "an assignment is below -1": bool((self.assignment < -1).any()),
            "features, positions or sizes of a real token are not finite": not all(
                bool(value[self.mask].isfinite().all()) for value in (self.features, self.positions, self.sizes)
            ),
            "a real token stands for nothing": bool((self.sizes[self.mask] <= 0).any()),
        }
        for problem, found in problems.items():
            if found:
                raise ValueError(f"broken tokens: {problem}")
        return self

    def save(self, path: str | Path, **meta: Any) -> Path:
        """Writes one safetensors file with a JSON header, whole or not at all.

        Args:
            path: where to; by custom it ends in `.safetensors`.
            meta: plain values added to the header, beside what `self.meta` holds already.
        """
        grid = {
            "shape": list(self.grid.shape),
            "times": None if self.grid.times is None else self.grid.times.tolist(),
            "lengths": None if self.grid.lengths is None else self.grid.lengths.tolist(),
        }
        tensors = {name: getattr(self, name) for name in _TENSORS if getattr(self, name) is not None}
        tensors |= {f"aux.{name}": value for name, value in self.aux.items()}
        return files.save(path, "tokens", tensors, {"grid": grid, "meta": {**self.meta, **meta}})

    @staticmethod
    def load(path: str | Path, device: str | torch.device = "cpu") -> Tokens:
        """Reads a file written by `save`.

        Raises:
            ValueError: says what is wrong: missing, cut short, another kind of file, a newer format,
                shapes that do not fit the grid, values that break a promise of `Tokens`.
        """
        header: Header = conform(files.load_header(path, "tokens"), Header, f"{path}: a damaged token file")
        tensors, _ = files.load(path, "tokens", device)
        try:
            T, H, W = header["grid"]["shape"]
            times, lengths = header["grid"]["times"], header["grid"]["lengths"]
            grid = Grid(
                T,
                H,
                W,
                times=None if times is None else torch.tensor(times, dtype=torch.float64),
                lengths=None if lengths is None else torch.tensor(lengths, dtype=torch.int64),
            )
            aux = {name[4:]: value for name, value in tensors.items() if name.startswith("aux.")}
            rest = {name: value for name, value in tensors.items() if not name.startswith("aux.")}
            _check_tensors(rest)
            return Tokens(**rest, grid=grid, aux=aux, meta=header["meta"]).check()
        except (ValueError, RuntimeError) as error:
            raise ValueError(f"{path}: a damaged token file ({' '.join(str(error).split())})") from None


def _check_tensors(tensors: dict[str, Tensor]) -> None:
    """Raises a ValueError that names a tensor that is missing, of no use, or of the wrong dtype."""
    if lacking := [name for name in _TENSORS[:5] if name not in tensors]:
        raise ValueError(f"it lacks {', '.join(lacking)}")
    for name, value in tensors.items():
        if name not in _DTYPES:
            raise ValueError(f"it has a tensor of no use, {name[:40]!r}")
        if value.dtype not in _DTYPES[name]:
            raise ValueError(f"{name} must be {_DTYPES[name][0]}, got {value.dtype}")
