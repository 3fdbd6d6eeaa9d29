"""The three types that everything is built on: Grid, Plan and Tokens. Start reading here.

Every compressor decides which source cells go to which token (`Plan`); one function, `Tokens.apply`, moves
the features. The axis letters, used in every shape comment of the project:

    B  videos of a batch (always videos; time is inside the grid)
    N  tokens that go in        M  tokens that come out
    T  frames (or tubelets) of the grid, H rows, W columns
    S  source cells, S = T*H*W, in raster order: cell = (t*H + y)*W + x
    C  channels of a feature    P  prefix tokens (class and register tokens)
    Q  codes of a token (residual levels, product groups)
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple, TypedDict

import torch
import torch.nn.functional as F
from torch import Tensor

from fewtokens.core import files
from fewtokens.core.grid import Grid
from fewtokens.core.html import as_html
from fewtokens.core.plain import conform
from fewtokens.core.plan import Dropped, Plan, by_position, follow, sums
from fewtokens.core.pytree import register
from fewtokens.core.shapes import by_shape

__all__ = ["Grid", "Packed", "Plan", "Tokens"]

# The nearest kept token is searched in blocks of cells, so that no distance table grows past this many
# entries (64 MiB in float32).
_DISTANCES_AT_ONCE = 1 << 24
# Everything of Tokens that has a row for each video; `SLOTS` of these have a row for each token.
_TENSORS = ("features", "positions", "sizes", "mask", "assignment", "prefix", "codes", "attribution")
SLOTS = ("features", "positions", "sizes", "mask", "codes", "attribution")
_FLOATS = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
_DTYPES = {
    "features": _FLOATS, "prefix": _FLOATS, "positions": (torch.float32,), "sizes": (torch.float32,),
    "attribution": _FLOATS, "mask": (torch.bool,), "assignment": (torch.int64,), "codes": (torch.int64,),
}  # fmt: skip


class _Shape(TypedDict):
    shape: tuple[int, int, int]
    times: list[float] | list[list[float]] | None
    lengths: list[int] | None


class _Dropped(TypedDict, total=False):
    dropped: Dropped


class Header(_Dropped):
    """What the header of a token file says beside the versions. Files of format 1 have no `dropped`."""

    grid: _Shape
    meta: dict[str, Any]


class Packed(NamedTuple):
    """Ragged tokens without padding: `features` [sum of counts, C] and `cu_seqlens` int32 [B+1]."""

    features: Tensor
    cu_seqlens: Tensor
    max_count: int

    def __repr__(self) -> str:
        return by_shape(self)


@dataclass(frozen=True, eq=False)
class Tokens:
    """Tokens of a batch of videos, with what each stands for.

    Args:
        features: [B,N,C] float. Padded slots are zero in every field.
        positions: [B,N,3] float32, (t,y,x) in source cells; the size-weighted mean of the members.
        sizes: [B,N] float32, how many source cells a token stands for.
        mask: [B,N] bool, True = real; real ones come first.
        assignment: [B,S] int64, which token each source cell went to; -1 = dropped.
        grid: the source cells.
        prefix: [B,P,C] class and register tokens, never reduced, or None.
        codes: [B,N,Q] int64, Q discrete ids of each token, or None.
        attribution: [B,N,S] float, how much each source cell gave to each token (soft attribution), or None
            where `assignment` says it all.
        dropped: what a dropped cell means, "lost", or "held" where nothing changed there, so that the last token at the
            same place still holds; see `Plan`.
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
    dropped: Dropped = "lost"
    aux: dict[str, Tensor] = field(default_factory=dict)
    meta: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.features.ndim != 3:
            raise ValueError(f"features must be [B,N,C], got {list(self.features.shape)}")
        B, N, C = self.features.shape
        expected = {"positions": (B, N, 3), "sizes": (B, N), "mask": (B, N), "assignment": (B, self.grid.cells)}
        if self.codes is not None:
            expected["codes"] = (B, N, *self.codes.shape[2:3]) if self.codes.ndim == 3 else (B, N, 1)
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
        if grid.lengths is not None:
            features = features.masked_fill(~mask[..., None], 0)
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
        """These tokens if there is still one for every cell; otherwise a ValueError in the name of `caller`.

        While a graph is traced only the number of tokens is looked at.
        """
        index = torch.arange(self.grid.cells, device=self.device)
        whole = self.grid.cells == self.N
        if whole and not torch.compiler.is_compiling():
            whole = bool(((self.assignment == index) | ~self.mask).all())
        if not whole:
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

    def cpu(self) -> Tokens:
        return self.to("cpu")

    def cuda(self, device: int | str | torch.device = "cuda") -> Tokens:
        return self.to(f"cuda:{device}" if isinstance(device, int) else device)

    def numpy(self) -> dict[str, Any]:
        """Every tensor by name as a NumPy array on the CPU; bfloat16, which NumPy lacks, as float32."""
        tensors = {name: value for name in _TENSORS if (value := getattr(self, name)) is not None}
        return {
            name: (value.float() if value.dtype == torch.bfloat16 else value).detach().cpu().numpy()
            for name, value in tensors.items()
        }

    def to_pandas(self) -> Any:
        """One row a token, without padding: video, token, seconds (if known), t, y, x, size, codes, features f0, f1 ...

        Returns:
            A pandas DataFrame.

        Raises:
            ValueError: pandas is missing.
        """
        try:
            import pandas
        except ImportError:
            raise ValueError("to_pandas needs pandas; pip install pandas") from None
        video, token = (index.cpu().numpy() for index in self.mask.nonzero(as_tuple=True))
        columns: dict[str, Any] = {"video": video, "token": token}
        if self.grid.times is not None:
            times = self.grid.times.expand(self.B, -1).to(self.device).gather(1, self.frame)
            columns["seconds"] = times[self.mask].cpu().numpy()
        for name, values in zip("tyx", self.positions[self.mask].unbind(1), strict=True):
            columns[name] = values.cpu().numpy()
        columns["size"] = self.sizes[self.mask].cpu().numpy()
        if self.codes is not None:
            columns |= {f"code{q}": v.cpu().numpy() for q, v in enumerate(self.codes[self.mask].unbind(1))}
        features = self.features[self.mask].detach().float().cpu().numpy()
        return pandas.concat(
            [pandas.DataFrame(columns), pandas.DataFrame(features).add_prefix("f")],
            axis=1,
        )

    @staticmethod
    def from_hf(outputs: Any, grid: Grid | tuple[int, int, int], *, num_prefix: int | None = None) -> Tokens:
        """The tokens of a vision model of transformers.

        Args:
            outputs: what the model returned, or its `last_hidden_state`, [frames,P+H*W,C], each frame one row, or
                [B,P+T*H*W,C] for a video model.
            grid: the cells, (T,H,W) or a `Grid`.
            num_prefix: P, class and register tokens in front of each row; by default what does not fit the grid.

        Raises:
            ValueError: no last_hidden_state, or a number of tokens that does not fit the grid.
        """
        hidden = outputs if isinstance(outputs, Tensor) else getattr(outputs, "last_hidden_state", None)
        if not isinstance(hidden, Tensor) or hidden.ndim != 3:
            raise ValueError(f"outputs need a last_hidden_state [rows,tokens,C], got {type(outputs).__name__}")
        grid = grid if isinstance(grid, Grid) else Grid(*grid)
        rows, length, C = hidden.shape
        by_frame = rows % grid.T == 0 and length < grid.cells + (num_prefix or 0)
        cells = grid.cells_per_frame if by_frame or grid.T == 1 else grid.cells
        P = length - cells if num_prefix is None else num_prefix
        if P < 0 or length != P + cells:
            raise ValueError(f"{length} tokens a row do not fit a grid of {grid.T} x {grid.H} x {grid.W} cells")
        frames = grid.T if by_frame else 1
        prefix = hidden[:, :P].reshape(rows // frames, frames * P, C) if P else None
        return Tokens.from_cells(hidden[:, P:].reshape(rows // frames, grid.cells, C), grid, prefix)

    def apply(self, plan: Plan) -> Tokens:
        """Moves the tokens as the plan says: the only place that gathers, averages or scatters features.

        Merging conserves mass: `sizes` sums to the cells kept, and sum(sizes * features) stays the same.
        `assignment` is chained, so it always leads from the original cells to the tokens at hand.
        Differentiable in the features (and in soft weights).

        Raises:
            ValueError: a plan of other tokens.
        """
        B, N = plan.shape
        if (B, N) != (self.B, self.N):
            raise ValueError(f"this plan moves {N} tokens of {B} videos, here are {self.N} of {self.B}")
        if plan.weights is not None:
            return self._apply_soft(plan)
        assert plan.dest is not None
        plan = replace(plan, dest=plan.dest.masked_fill(~self.mask, -1))
        assert plan.dest is not None
        own = self.sizes if plan.sizes is None else plan.sizes.to(self.sizes.dtype)
        copied = plan.representative is not None
        if copied:
            sizes = sums(own[..., None], plan.dest, plan.num_slots).squeeze(2)
            share = parts = own  # not looked at
        else:
            share, sizes = plan.parts(own.double() if self.features.dtype == torch.float64 else own)
            parts = share if plan.shares is None else plan.shares.masked_fill(plan.dest < 0, 0)

        def move(values: Tensor, parts: Tensor) -> Tensor:
            return plan.copy(values) if copied else plan.sum(values, parts)

        return replace(
            self,
            features=move(self.features, parts),
            positions=move(self.positions, share),
            sizes=sizes.to(self.sizes.dtype),
            mask=plan.mask.to(self.device),
            assignment=follow(plan.dest, self.assignment),
            # Codes name what a token is, so they stay only where tokens are copied.
            codes=plan.copy(self.codes) if copied and self.codes is not None else None,
            attribution=None if self.attribution is None else move(self.attribution, parts),
            dropped="held" if "held" in (self.dropped, plan.dropped) else "lost",
        )

    def _apply_soft(self, plan: Plan) -> Tokens:
        assert plan.weights is not None
        filled = plan.mask.to(self.device)
        weights = plan.weights * self.mask[:, None] * filled[..., None]  # [B,M,N]
        # A token's size is spread over the outputs that use it, so that sizes still sum to the cells used.
        owned = weights.detach().float().clamp(min=0)
        share = owned / owned.sum(1, keepdim=True).clamp(min=1e-12)
        centre = owned / owned.sum(2, keepdim=True).clamp(min=1e-12)
        best = share.argmax(1).masked_fill(share.sum(1) == 0, -1)  # [B,N]
        if self.attribution is None:
            # One more token, of no weight, for the cells of none.
            parts = F.pad(weights / self.sizes.clamp(min=1e-12)[:, None], (0, 1))
            token = torch.where(self.assignment < 0, self.N, self.assignment)
            per_cell = parts.gather(2, token[:, None].expand(-1, plan.num_slots, -1))
        else:
            per_cell = weights.to(self.attribution.dtype) @ self.attribution
        return replace(
            self,
            features=replace(plan, weights=weights).move(self.features),
            positions=centre @ self.positions,
            sizes=(share @ self.sizes[..., None]).squeeze(2),
            mask=filled,
            assignment=follow(best, self.assignment),
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

    def on(self, grid: Grid) -> Tokens:
        """The same tokens on a finer grid: a cell becomes 2x2, 3x3 ... cells of the new one.

        Frames of several resolutions in one video are brought to one reference grid by this; a token then stands for
        as many of its cells as it covers. Features do not change.

        Args:
            grid: with the same T, and rows and columns that are multiples of the old ones. Times and lengths are taken
                from it if given, else from the old grid.

        Raises:
            ValueError: a grid that is not a multiple.
        """
        T, H, W = self.grid.shape
        if grid.T != T or grid.H % H or grid.W % W:
            raise ValueError(
                f"a grid of {T} x {H} x {W} cells does not divide one of {' x '.join(map(str, grid.shape))}"
            )
        y, x = grid.H // H, grid.W // W
        grid = replace(
            grid,
            times=self.grid.times if grid.times is None else grid.times,
            lengths=self.grid.lengths if grid.lengths is None else grid.lengths,
        )
        if (y, x) == (1, 1):
            return replace(self, grid=grid)

        def spread(values: Tensor) -> Tensor:
            cells = values.unflatten(-1, (T, H, W))
            return cells.repeat_interleave(y, -2).repeat_interleave(x, -1).flatten(-3)

        factor = torch.tensor([1.0, y, x], device=self.device)
        positions = (self.positions + 0.5) * factor - 0.5
        return replace(
            self,
            positions=positions.masked_fill(~self.mask[..., None], 0),
            sizes=self.sizes * (y * x),
            assignment=spread(self.assignment),
            attribution=None if self.attribution is None else spread(self.attribution) / (y * x),
            grid=grid,
        )

    def ordered(self) -> Tokens:
        """The same tokens by mean time, then row, then column."""
        order = by_position(self.positions, self.mask)
        dest = order.argsort(dim=1).masked_fill(~self.mask, -1)
        return self.apply(Plan(self.count, self.N, dest, order))

    def unmerge(self, *, time_weight: float = 1.0) -> Tensor:
        """Back to the grid: each cell gets the feature of the token it went to, [B,T,H,W,C].

        A dropped cell that is "lost" takes the nearest token, by Euclidean distance between the cell and the tokens'
        positions, in cells; ties go to the first. If dropping means "held", it takes the most recent token at the same
        place, and the nearest where there is none. Frames past a video's length are zero. Differentiable. Distances are
        taken in blocks of bounded memory.

        Args:
            time_weight: a step along time in cells, for the distance.
        """
        assignment = self.assignment
        exists = self.grid.exists(self.B, self.device)
        if self.dropped == "held":
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
        """The videos with these numbers, in this order; negative numbers count from the end."""
        index = torch.as_tensor(index, dtype=torch.int64, device=self.device)
        if bool(((index < -self.B) | (index >= self.B)).any()):
            raise IndexError(f"videos are numbered 0 to {self.B - 1}, got {index.tolist()}")
        index = index % max(1, self.B)
        changes: dict[str, Any] = {
            name: None if getattr(self, name) is None else getattr(self, name)[index] for name in _TENSORS
        }
        return replace(self, grid=self.grid.select(index), **changes)

    def __len__(self) -> int:
        """How many videos there are."""
        return self.B

    def __getitem__(self, video: int | slice | Sequence[int] | Sequence[bool] | Tensor) -> Tokens:
        """Some of the videos: `tokens[0]` is one alone, without padding; a slice or an index gives a batch.

        Args:
            video: a number (negative ones count from the end), a slice, numbers, or booleans [B].
        """
        if isinstance(video, slice):
            return self.select(list(range(self.B))[video])
        if isinstance(video, Tensor) and video.ndim == 0:
            video = int(video)
        if not isinstance(video, int):
            index = torch.as_tensor(video)
            if index.dtype == torch.bool:
                if index.shape != (self.B,):
                    raise IndexError(f"booleans must be [B] with B={self.B}, got {list(index.shape)}")
                index = index.nonzero().squeeze(1)
            return self.select(index)
        one = self.select([video])
        (grid,) = one.grid.videos(1)
        n = int(one.mask.sum())
        changes: dict[str, Any] = {
            name: None if getattr(one, name) is None else getattr(one, name)[:, :n] for name in SLOTS
        }
        if one.attribution is not None:
            changes["attribution"] = one.attribution[:, :n, : grid.cells]
        return replace(one, grid=grid, assignment=one.assignment[:, : grid.cells], **changes)

    def __iter__(self) -> Iterator[Tokens]:
        return (self[b] for b in range(self.B))

    def __repr__(self) -> str:
        shape = f"B={self.B}, N={self.N}, C={self.C}"
        dtype = str(self.features.dtype).removeprefix("torch.")
        more = [f"prefix={self.num_prefix}"] if self.prefix is not None else []
        more += [f"codes={self.codes.shape[2]}"] if self.codes is not None else []
        more += ["soft"] if self.attribution is not None else []
        more += ["dropped='held'"] if self.dropped == "held" else []
        grid = " x ".join(map(str, self.grid.shape))
        return f"Tokens({', '.join([shape, f'grid={grid}', dtype, str(self.device), *more])})"

    def _repr_html_(self) -> str:
        """Shown by notebooks: the regions that the tokens of each video stand for, frame by frame."""
        return as_html(self)

    def check(self) -> Tokens:
        """Validates invariants, and returns the tokens; raises ValueError on violation."""
        self.grid.videos(self.B)
        padding = {name: value for name in SLOTS if name != "mask" and (value := getattr(self, name)) is not None}
        problems = {
            "real tokens must come first in the mask": not bool((self.mask[:, :-1] >= self.mask[:, 1:]).all()),
            "an assignment points past the real tokens": bool((self.assignment >= self.count[:, None]).any()),
            "an assignment is below -1": bool((self.assignment < -1).any()),
            "features, positions or sizes of a real token are not finite": not all(
                bool(value[self.mask].isfinite().all()) for value in (self.features, self.positions, self.sizes)
            ),
            "a valid token has size 0": bool((self.sizes[self.mask] <= 0).any()),
            "padded slots must be zero": any(bool((value[~self.mask] != 0).any()) for value in padding.values()),
        }
        for problem, broken in problems.items():
            if broken:
                raise ValueError(f"invalid Tokens: {problem}")
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
        return files.save(
            path, "tokens", tensors, {"grid": grid, "dropped": self.dropped, "meta": {**self.meta, **meta}}
        )

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
            rest = _current({name: value for name, value in tensors.items() if not name.startswith("aux.")})
            _check_tensors(rest)
            return Tokens(
                **rest, grid=grid, dropped=header.get("dropped", "lost"), aux=aux, meta=header["meta"]
            ).check()
        except (ValueError, RuntimeError) as error:
            raise ValueError(f"{path}: a damaged token file ({' '.join(str(error).split())})") from None


def _current(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of a file under the names of today; format 1 had other ones, one code a token, and loose padding."""
    if "source" not in tensors:
        return tensors
    tensors = {{"source": "assignment", "weights": "attribution"}.get(name, name): v for name, v in tensors.items()}
    if "codes" in tensors and tensors["codes"].ndim == 2:
        tensors["codes"] = tensors["codes"][..., None]
    mask = tensors.get("mask")
    for name in SLOTS:
        value = tensors.get(name)
        if mask is not None and value is not None and name != "mask" and value.shape[:2] == mask.shape:
            tensors[name] = value.masked_fill(~mask.reshape(*mask.shape, *[1] * (value.ndim - 2)), 0)
    return tensors


def _check_tensors(tensors: dict[str, Tensor]) -> None:
    """Raises a ValueError that names a tensor that is missing, of no use, or of the wrong dtype."""
    if lacking := [name for name in _TENSORS[:5] if name not in tensors]:
        raise ValueError(f"it lacks {', '.join(lacking)}")
    for name, value in tensors.items():
        if name not in _DTYPES:
            raise ValueError(f"it has a tensor of no use, {name[:40]!r}")
        if value.dtype not in _DTYPES[name]:
            raise ValueError(f"{name} must be {_DTYPES[name][0]}, got {value.dtype}")


register(Grid, ("times", "lengths"))
register(Plan, ("count", "dest", "representative", "weights", "shares", "sizes"))
register(Tokens, (*_TENSORS, "grid", "aux"))
