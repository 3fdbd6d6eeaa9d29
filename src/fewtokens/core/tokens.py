"""The three core types: `Grid`, `Plan` and `Tokens`. Start reading here.

An encoder divides a video into the cells of a `Grid` and computes one token per cell. A method decides which tokens to
drop or merge (`Plan`), and `Tokens.apply` carries the plan out. Axis letters, used in all shape comments:

    B  videos in a batch (always videos; time is an axis of the grid)
    N  input tokens of a method, or slots of a batch; M output tokens
    T  frames (or tubelets), H rows and W columns of the grid
    S  cells of the grid, S = T*H*W, in raster order: cell = (t*H + y)*W + x
    w  frames of a block of `attribution`; block g has the frames g*w..g*w + w-1
    C  channels of a feature
    P  prefix tokens (class and register tokens)
    Q  codes of a token (residual levels, product groups, scales)
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from fewtokens.core import attribution, conversions
from fewtokens.core.conversions import SLOTS, TENSORS
from fewtokens.core.grid import Grid
from fewtokens.core.html import as_html
from fewtokens.core.plan import (
    Dropped,
    Plan,
    compose_assignment,
    group_sum,
    position_order,
    readable,
    split_blocks,
    take_rows,
)
from fewtokens.core.pytree import register
from fewtokens.core.shapes import shape_repr

__all__ = ["Grid", "Packed", "Plan", "Tokens"]

# The nearest token is searched in blocks of cells, so that no distance matrix has more entries than this
# (64 MiB in float32).
_MAX_DISTANCES = 1 << 24
# When a dropped cell takes its nearest token, a step in time counts as a tenth of a step in space: on most clips this
# reconstructs random, uniform and fewer_frames better than equal steps, and baselines should be strong.
TIME_WEIGHT = 0.1


class Packed(NamedTuple):
    """Tokens of a batch without padding, in the form that variable-length attention kernels accept.

    Attributes:
        features: [sum of counts, C], the real tokens of all videos, concatenated.
        cu_seqlens: int32 [B+1], cumulative counts; video b has the rows cu_seqlens[b]:cu_seqlens[b+1].
        max_count: the largest count.
    """

    features: Tensor
    cu_seqlens: Tensor
    max_count: int

    def __repr__(self) -> str:
        return shape_repr(self)


@dataclass(frozen=True, eq=False)
class Tokens:
    """The tokens of a batch of videos, and the cells that each token stands for.

        tokens = Tokens.from_cells(torch.randn(2, 4, 14, 14, 64))  # one token per cell
        fewer = fewtokens.create_method("tome", keep=0.1)(tokens)
        fewer.features    # [2, 78, 64]
        fewer.assignment  # [2, 784], the token of each cell
        fewer.unmerge()   # [2, 4, 14, 14, 64]

    Videos with fewer than N tokens are padded. Padded slots are zero in all fields. Instances are immutable; `replace`
    returns a modified copy. `len`, indexing and iteration are over videos.

    Args:
        features: [B,N,C] float.
        positions: float32 [B,N,3], (t,y,x) in cells; the size-weighted mean of the token's cells.
        sizes: float32 [B,N], number of cells that each token stands for.
        mask: bool [B,N], True for real tokens, which come before padding.
        assignment: int64 [B,S], index of the token that each cell went to; -1 if the cell was dropped.
        grid: the grid of cells.
        prefix: [B,P,C], class and register tokens, which are never reduced, or None.
        codes: int64 [B,N,Q], discrete codes of each token, or None; -1 for no code, see `Quantizer`.
        attribution: float [B,N,w*H*W], weight of each cell in each token, or None if `assignment` determines it. The
            cells are those of the token's block of w frames, w in 1..T: the block of a token at `frame` t begins at
            frame w * (t // w). Weights past the end of the video are 0. A method that resamples each frame separately
            has w = 1; with w = T these are all cells. `cell_weights` returns the weights of any cells.
        dropped: the meaning of a dropped cell for `unmerge`: "lost", or "held" if the previous token at the same
            position remains valid because nothing changed.
        aux: scalar losses and statistics by name.
        meta: plain values that are saved with the tokens, such as spec, encoder, source file and seed.

    Raises:
        ValueError: a tensor has the wrong shape. `check` validates the values too.
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
            # Any number of whole frames, at most T.
            HW = self.grid.cells_per_frame
            frames = max(1, min(self.grid.T, self.attribution.shape[-1] // HW))
            expected["attribution"] = (B, N, frames * HW)
        if self.prefix is not None:
            # A method may change the channels of the tokens, but not those of the prefix.
            expected["prefix"] = (B, *self.prefix.shape[1:]) if self.prefix.ndim == 3 else (B, 0, C)
        for name, shape in expected.items():
            actual = tuple(getattr(self, name).shape)
            if actual != shape:
                raise ValueError(f"{name} must be {list(shape)}, got {list(actual)}")

    @staticmethod
    def from_cells(features: Tensor, grid: Grid | None = None, prefix: Tensor | None = None) -> Tokens:
        """Creates one token per cell.

        Args:
            features: [B,T,H,W,C], or [B,S,C] with a `grid`.
            grid: the grid; required for [B,S,C], and to specify times or lengths.
            prefix: class and register tokens [B,P,C], or None.

        Raises:
            ValueError: the features do not fit the grid.
        """
        if grid is None:
            if features.ndim != 5:
                raise ValueError(f"features must be [B,T,H,W,C] if no grid is given, got {list(features.shape)}")
            grid = Grid(*features.shape[1:4])
        B = features.shape[0]
        features = features.flatten(1, -2)
        if features.shape[1] != grid.cells:
            raise ValueError(f"the grid has {grid.cells} cells, the features have {features.shape[1]}")
        mask = grid.cell_mask(B, features.device)
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
        """The number of videos."""
        return self.features.shape[0]

    @property
    def N(self) -> int:
        """The number of slots per video, including padding."""
        return self.features.shape[1]

    @property
    def C(self) -> int:
        """The number of channels."""
        return self.features.shape[2]

    @property
    def device(self) -> torch.device:
        """The device of the features."""
        return self.features.device

    @property
    def count(self) -> Tensor:
        """The number of real tokens of each video, int64 [B]."""
        return self.mask.sum(1)

    @property
    def num_prefix(self) -> int:
        """The number of prefix tokens, P."""
        return 0 if self.prefix is None else self.prefix.shape[1]

    @property
    def cell(self) -> Tensor:
        """The cell nearest to the position of each token, int64 [B,N]; 0 in padded slots."""
        limit = torch.tensor(self.grid.shape, device=self.device) - 1
        t, y, x = self.positions.round().long().clamp(min=0).minimum(limit).unbind(2)
        return (t * self.grid.H + y) * self.grid.W + x

    @property
    def frame(self) -> Tensor:
        """The frame nearest to the position of each token, int64 [B,N]; 0 in padded slots."""
        return self.cell // self.grid.cells_per_frame

    @property
    def block_frames(self) -> int:
        """The number w of frames of a block of `attribution`; T if there is no attribution."""
        return self.grid.T if self.attribution is None else self.attribution.shape[2] // self.grid.cells_per_frame

    def cell_weights(self, index: Tensor | None = None, frames: Tensor | None = None) -> Tensor:
        """Returns the weight of each cell in some tokens: rows of `attribution` for any cells, zero outside the block.

        The weights of all tokens and cells have N*S entries, which is too many for a long video.

        Args:
            index: int64 [K], indices of tokens, the same in every video. Default: all N.
            frames: int64 [F], frames of the cells. Default: all T.

        Returns:
            [B,K,F*H*W], in raster order.

        Raises:
            ValueError: the tokens have no attribution.
        """
        return attribution.take_cells(self, index, frames)

    def attribution_in_blocks(self, frames: int) -> Tensor:
        """Returns `attribution` in larger blocks, [B,N,frames*H*W].

        Args:
            frames: a multiple of `block_frames`, or at least T.
        """
        return attribution.enlarge_blocks(self, frames)

    def previous_frame_index(self) -> Tensor:
        """Returns the index of the token at the same position in the previous frame, int64 [B,N]; -1 if there is none.

        Works for reduced tokens too: it is the token to which the previous frame's cell is assigned, unless that is
        the token itself.
        """
        previous_cell = self.cell - self.grid.cells_per_frame
        index = self.assignment.gather(1, previous_cell.clamp(min=0))
        index = index.masked_fill((previous_cell < 0) | ~self.mask, -1)
        own = torch.arange(self.N, device=self.device)
        return index.masked_fill(index == own, -1)

    def has_full_grid(self) -> bool:
        """Returns whether there is one token per cell, in their order. Reads the data."""
        if self.grid.cells != self.N:
            return False
        index = torch.arange(self.N, device=self.device)
        # A video may have kept its first cells and dropped the others.
        every = torch.equal(self.mask, self.grid.cell_mask(self.B, self.device))
        return every and bool(((self.assignment == index) | ~self.mask).all())

    def require_full_grid(self, caller: str) -> Tokens:
        """Returns these tokens if there is one per cell. While compiling, only the number of tokens is checked.

        Args:
            caller: name of the method that requires it, for the error message.

        Raises:
            ValueError: tokens were dropped or merged.
        """
        full = self.grid.cells == self.N
        if full and not torch.compiler.is_compiling():
            full = self.has_full_grid()
        if not full:
            raise ValueError(f"{caller} works on whole frames: put it before methods that drop or merge tokens")
        return self

    def replace(self, **changes: Any) -> Tokens:
        """Returns a copy with some fields replaced."""
        return replace(self, **changes)

    def to(self, *args: Any, **kwargs: Any) -> Tokens:
        """Moves all tensors to a device, or casts features and prefix to a dtype; arguments as `Tensor.to`.

        Positions and sizes stay float32, and the dtype of `attribution` does not change.
        """
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
        """Moves all tensors to the CPU."""
        return self.to("cpu")

    def cuda(self, device: int | str | torch.device = "cuda") -> Tokens:
        """Moves all tensors to a CUDA device."""
        return self.to(f"cuda:{device}" if isinstance(device, int) else device)

    def numpy(self) -> dict[str, Any]:
        """Returns all tensors by name as NumPy arrays; bfloat16 becomes float32. Fields that are None are skipped."""
        return conversions.to_arrays(self)

    def to_pandas(self) -> Any:
        """Converts to a pandas DataFrame with one row per real token.

        Returns:
            A DataFrame with the columns video, token, seconds (if times are known), t, y, x, size, code0, code1, ...
            (if there are codes) and the features f0, f1, ...

        Raises:
            ValueError: pandas is not installed.
        """
        return conversions.to_frame(self)

    @staticmethod
    def from_hf(outputs: Any, grid: Grid | tuple[int, int, int], *, num_prefix: int | None = None) -> Tokens:
        """Converts the output of a vision model of transformers.

        Args:
            outputs: the output of the model, or its `last_hidden_state`: [B*T,P+H*W,C] for an image model, one row per
                frame, or [B,P+T*H*W,C] for a video model.
            grid: the grid, or (T,H,W).
            num_prefix: number P of class and register tokens at the start of each row. Default: the number of tokens
                that the grid leaves over.

        Raises:
            ValueError: there is no last_hidden_state, or the number of tokens does not fit the grid.
        """
        return Tokens.from_cells(*conversions.split_hidden(outputs, grid, num_prefix))

    def apply(self, plan: Plan) -> Tokens:
        """Drops and merges tokens according to a plan. Differentiable in the features and in soft weights.

        Merging conserves mass: `sizes` sums to the number of assigned cells, and sum(sizes * features) is unchanged.
        `assignment` is composed with the plan, so it always maps the original cells to the current tokens. Codes are
        kept only if tokens are copied, not averaged. This is the only function that moves features.

        Args:
            plan: a plan for B videos and N tokens.

        Returns:
            Tokens with `plan.num_slots` slots, on the same grid.

        Raises:
            ValueError: the plan is for another number of videos or tokens, or its weights are in blocks and there is
                not one token per cell.
        """
        B, N = plan.shape
        if plan.weights is not None and plan.weights.ndim == 4:
            n = plan.weights.shape[3]
            if self.grid.cells != self.N or n % self.grid.cells_per_frame:
                raise ValueError(f"weights in blocks of {n} tokens require one token per cell, and whole frames")
            N -= -self.N % n
        if (B, N) != (self.B, self.N):
            raise ValueError(f"the plan is for {B} videos of {N} tokens, got {self.B} videos of {self.N}")
        if plan.weights is not None:
            return self._apply_soft(plan)
        assert plan.dest is not None
        if not (readable(self.mask) and bool(self.mask.all())):
            plan = replace(plan, dest=plan.dest.masked_fill(~self.mask, -1))
        assert plan.dest is not None
        own = self.sizes if plan.sizes is None else plan.sizes.to(self.sizes.dtype)
        copied = plan.representative is not None
        rows = None if copied else plan.rows
        if copied:
            sizes = group_sum(own[..., None], plan.dest, plan.num_slots).squeeze(2)
            share = parts = own  # unused
        else:
            share, sizes = plan.parts(own.double() if self.features.dtype == torch.float64 else own, rows)
            parts = share if plan.shares is None else plan.shares.masked_fill(plan.dest < 0, 0)

        def move(values: Tensor, parts: Tensor) -> Tensor:
            return plan.copy(values) if copied else plan.sum(values, parts, rows)

        return replace(
            self,
            features=move(self.features, parts),
            positions=move(self.positions, share),
            sizes=sizes.to(self.sizes.dtype),
            mask=plan.mask.to(self.device),
            assignment=compose_assignment(plan.dest, self.assignment),
            # The codes of a mean are undefined, so codes are kept only if tokens are copied.
            codes=plan.copy(self.codes) if copied and self.codes is not None else None,
            attribution=attribution.apply_hard(self, plan, parts),
            dropped="held" if "held" in (self.dropped, plan.dropped) else "lost",
        )

    def _apply_soft(self, plan: Plan) -> Tokens:
        filled = plan.mask.to(self.device)
        G, m, n = plan.block_weights.shape[1:]
        mask, positions, sizes = (split_blocks(x, n) for x in (self.mask, self.positions, self.sizes))
        weights = plan.block_weights * mask[:, :, None] * filled.unflatten(1, (G, m))[..., None]  # [B,G,m,n]
        # The size of a token is distributed over the outputs that use it, so that sizes still sum to the used cells.
        positive = weights.detach().float().clamp(min=0)
        share = positive / positive.sum(2, keepdim=True).clamp(min=1e-12)
        center = positive / positive.sum(3, keepdim=True).clamp(min=1e-12)
        block = torch.arange(G, device=self.device)[:, None]
        best = (share.argmax(2) + m * block).masked_fill(share.sum(2) == 0, -1)  # [B,G,n]
        if G == 1:
            means = center @ positions
        else:
            # From the first frame of the block, so that the time of a token in one frame is exact.
            start = F.pad((block * (n // self.grid.cells_per_frame))[..., None], (0, 2))
            means = center @ (positions - start) + start
        if self.attribution is not None:
            per_cell = attribution.apply_soft(self, replace(plan, weights=weights))
        elif G > 1:
            per_cell = (weights / sizes.clamp(min=1e-12)[:, :, None]).flatten(1, 2)
        else:
            # One extra token of weight 0 for dropped cells.
            parts = F.pad(weights[:, 0] / self.sizes.clamp(min=1e-12)[:, None], (0, 1))
            token = torch.where(self.assignment < 0, self.N, self.assignment)
            per_cell = parts.gather(2, token[:, None].expand(-1, plan.num_slots, -1))
        return replace(
            self,
            features=replace(plan, weights=weights).move(self.features),
            positions=means.flatten(1, 2).masked_fill(~filled[..., None], 0),
            sizes=(share @ sizes[..., None]).flatten(1),
            mask=filled,
            assignment=compose_assignment(best.flatten(1)[:, : self.N], self.assignment),
            codes=None,
            attribution=per_cell,
        )

    def pool(self, values: Tensor, before: Tokens | None = None) -> Tensor:
        """Pools a tensor with one row per earlier token to one row per current token.

        A row is the mean of the rows of the tokens that were merged into the current one, weighted by their sizes, or
        by `attribution` if tokens were resampled. Rows of padded slots, and of tokens without attribution, are zero.

        Args:
            values: [B,N',...], one row per token of `before`, or per cell if `before` is None.
            before: the tokens that these were reduced from, by any number of methods. Default: one token per cell.

        Returns:
            [B,N,...] in the dtype of `values`. Sums are accumulated in float32 (in float64 for float64 input).

        Raises:
            ValueError: `before` is resampled, so its tokens cannot be traced to these.
        """
        if before is self:
            return values
        if before is None:
            before = Tokens.from_cells(self.features.new_zeros(self.B, self.grid.cells, 1), self.grid)
        if before.attribution is not None:
            raise ValueError(
                "rows of resampled tokens cannot be pooled after later methods: pass rows of the tokens before the "
                "resampler, and run the full chain in one call"
            )
        rows = values.reshape(*values.shape[:2], -1)
        if self.attribution is None:
            moved = Plan.from_assignment(before, self).move(rows, before.sizes)
        else:
            moved = attribution.weighted_means(self, rows, before.assignment)
        return moved.reshape(self.B, self.N, *values.shape[2:])

    def to_grid(self, grid: Grid) -> Tokens:
        """Moves the tokens to a finer grid, in which each cell is split into y x x cells.

        Used to combine frames of different resolutions in one video. Features do not change; a token stands for all
        cells of the new grid that it covers.

        Args:
            grid: the new grid, with the same T and with H and W that are multiples of the old ones. Its times and
                lengths are used if given, otherwise those of the old grid.

        Raises:
            ValueError: H or W is not a multiple, or T differs.
        """
        T, H, W = self.grid.shape
        if grid.T != T or grid.H % H or grid.W % W:
            raise ValueError(
                f"the new grid must be a multiple of {T} x {H} x {W} in H and W, got {' x '.join(map(str, grid.shape))}"
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
            cells = values.unflatten(-1, (-1, H, W))
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

    def sort_by_position(self) -> Tokens:
        """Sorts the tokens of each video by mean time, then row, then column."""
        order = position_order(self.positions, self.mask)
        dest = order.argsort(dim=1).masked_fill(~self.mask, -1)
        return self.apply(Plan(self.count, self.N, dest, order))

    def unmerge(self, *, time_weight: float = 1.0) -> Tensor:
        """Restores the grid: each cell gets the feature of the token that it is assigned to. Differentiable.

        If `dropped` is "lost", a dropped cell gets the feature of the nearest token, by Euclidean distance in cells;
        the first one wins ties. If it is "held", it gets the most recent token at the same position, or the nearest
        token if there is none. Frames past a video's length are zero.

        Args:
            time_weight: distance between consecutive frames, in cells. Default: 1.

        Returns:
            Features of all cells, [B,T,H,W,C].
        """
        assignment = self.assignment
        exists = self.grid.cell_mask(self.B, self.device)
        if self.dropped == "held":
            by_time = assignment.reshape(self.B, self.grid.T, -1)
            frame = torch.arange(self.grid.T, device=self.device)[:, None].expand_as(by_time)
            latest = frame.where(by_time >= 0, -1).cummax(dim=1).values
            by_time = by_time.gather(1, latest.clamp(min=0)).masked_fill(latest < 0, -1)
            assignment = by_time.reshape(assignment.shape).masked_fill(~exists, -1)
        lost = (assignment < 0) & exists
        if lost.any():
            assignment = torch.where(lost, self._nearest(lost, time_weight), assignment)
        cells = take_rows(self.features, assignment.clamp(min=0))
        cells = cells.masked_fill((assignment < 0)[..., None], 0)
        return cells.reshape(self.B, *self.grid.shape, self.C)

    def _nearest(self, lost: Tensor, time_weight: float) -> Tensor:
        """Returns the nearest real token of each cell that is lost in any video, int64 [B,S]; -1 for other cells."""
        scale = torch.tensor([time_weight, 1.0, 1.0], device=self.device)
        cells = self.grid.positions(self.device) * scale
        tokens = (self.positions * scale).masked_fill(~self.mask[..., None], torch.inf)
        nearest = self.assignment.new_full(self.assignment.shape, -1)
        index = lost.any(0).nonzero().squeeze(1)
        for block in index.split(max(1, _MAX_DISTANCES // (self.B * self.N))):
            # Not as a matrix product, whose rounding errors would break ties.
            distance = sum((cells[block, axis][None, :, None] - tokens[:, None, :, axis]).square() for axis in range(3))
            nearest[:, block] = distance.argmin(2)  # type: ignore[union-attr]
        return nearest

    def pack(self) -> Packed:
        """Concatenates the real tokens of all videos, for attention kernels that accept `cu_seqlens`."""
        count = self.count
        return Packed(
            self.features[self.mask],
            F.pad(count.cumsum(0), (1, 0)).to(torch.int32),
            int(count.max()) if self.B else 0,
        )

    def unpack(self, features: Tensor) -> Tokens:
        """Replaces the features by packed ones.

        Args:
            features: [sum of counts, C'], in the order of `packed`.
        """
        padded = features.new_zeros(self.B, self.N, features.shape[1])
        padded[self.mask] = features
        return replace(self, features=padded)

    def select(self, index: Tensor | Sequence[int]) -> Tokens:
        """Selects videos by index, in the given order; padding stays.

        Args:
            index: int64 [B']; negative indices count from the end.

        Raises:
            IndexError: an index is out of range.
        """
        index = torch.as_tensor(index, dtype=torch.int64, device=self.device)
        if bool(((index < -self.B) | (index >= self.B)).any()):
            raise IndexError(f"video indices must be in {-self.B}..{self.B - 1}, got {index.tolist()}")
        index = index % max(1, self.B)
        changes: dict[str, Any] = {
            name: None if getattr(self, name) is None else getattr(self, name)[index] for name in TENSORS
        }
        return replace(self, grid=self.grid.select(index), **changes)

    def __len__(self) -> int:
        """The number of videos."""
        return self.B

    def __getitem__(self, video: int | slice | Sequence[int] | Sequence[bool] | Tensor) -> Tokens:
        """Selects videos. `tokens[0]` is a single video without padding; any other index returns a padded batch.

        Args:
            video: an index (negative indices count from the end), a slice, a list of indices, or a bool mask [B].

        Raises:
            IndexError: an index is out of range, or a mask has the wrong length.
        """
        if isinstance(video, slice):
            return self.select(list(range(self.B))[video])
        if isinstance(video, Tensor) and video.ndim == 0:
            video = int(video)
        if not isinstance(video, int):
            index = torch.as_tensor(video)
            if index.dtype == torch.bool:
                if index.shape != (self.B,):
                    raise IndexError(f"a bool mask must be [B] with B={self.B}, got {list(index.shape)}")
                index = index.nonzero().squeeze(1)
            return self.select(index)
        single = self.select([video])
        (grid,) = single.grid.videos(1)
        n = int(single.mask.sum())
        changes: dict[str, Any] = {
            name: None if getattr(single, name) is None else getattr(single, name)[:, :n] for name in SLOTS
        }
        if single.attribution is not None:
            changes["attribution"] = single.attribution[:, :n, : grid.cells]  # a block may be longer than the video
        return replace(single, grid=grid, assignment=single.assignment[:, : grid.cells], **changes)

    def __iter__(self) -> Iterator[Tokens]:
        return (self[b] for b in range(self.B))

    def __repr__(self) -> str:
        shape = f"B={self.B}, N={self.N}, C={self.C}"
        dtype = str(self.features.dtype).removeprefix("torch.")
        extra = [f"prefix={self.num_prefix}"] if self.prefix is not None else []
        extra += [f"codes={self.codes.shape[2]}"] if self.codes is not None else []
        extra += ["soft"] if self.attribution is not None else []
        extra += ["dropped='held'"] if self.dropped == "held" else []
        grid = " x ".join(map(str, self.grid.shape))
        return f"Tokens({', '.join([shape, f'grid={grid}', dtype, str(self.device), *extra])})"

    def _repr_html_(self) -> str:
        """The HTML view in notebooks: the region of each frame that a token stands for."""
        return as_html(self)

    def check(self) -> Tokens:
        """Validates the values and returns the tokens.

        Raises:
            ValueError: real tokens do not come first, an assignment is out of range, a value is not finite, a size is
                0, or a padded slot is not zero.
        """
        self.grid.videos(self.B)
        padding = {name: value for name in SLOTS if name != "mask" and (value := getattr(self, name)) is not None}
        problems = {
            "real tokens must come before padding": not bool((self.mask[:, :-1] >= self.mask[:, 1:]).all()),
            "an assignment is not the index of a real token": bool((self.assignment >= self.count[:, None]).any()),
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
        """Writes the tokens to a safetensors file with a JSON header. The write is atomic.

        Args:
            path: output path, usually ending in `.safetensors`.
            meta: plain values to save in addition to `self.meta`.

        Returns:
            The path.

        Raises:
            OSError: the disk is full, or the path is not writable.
        """
        return conversions.save(self, path, meta)

    @staticmethod
    def load(path: str | Path, device: str | torch.device = "cpu") -> Tokens:
        """Reads a file written by `save`.

        Args:
            path: the file.
            device: device of the tensors. Default: "cpu".

        Raises:
            ValueError: the file does not exist, is corrupt, is not a token file, has a newer format, or its values are
                invalid (see `check`).
        """
        return conversions.load(Tokens, path, device)


register(Grid, ("times", "lengths"))
register(Plan, ("count", "dest", "representative", "weights", "shares", "sizes"))
register(Tokens, (*TENSORS, "grid", "aux"))
