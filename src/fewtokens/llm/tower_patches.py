"""Leaves out patches of videos in the vision tower: no block processes a patch whose features no token reads.

Methods of the stage "pixels" decide before encoding which cells they read. Hooks on the blocks of the tower then take
the patches of these cells out of the sequence, with their positions and their borders, and put the results back in
their place. Everything outside the blocks, such as positions, pooling, projector and the grid, is that of the full
video. Nothing is patched.

Patches that remain attend only to one another, so their features differ from those of the full tower, as in an encoder
that never saw the others. Towers attend within frames; a frame that is dropped as a whole changes no other one.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fewtokens.core.grid import Grid
from fewtokens.core.method import Method
from fewtokens.core.plan import Plan
from fewtokens.core.shapes import shape_repr
from fewtokens.core.tokens import Tokens
from fewtokens.llm.tower import Tower, tower_of

# Modules of towers, other than blocks, that map each patch or group of patches separately.
_ROW_WISE = ("patch_embed", "merger", "deepstack_merger_list", "merger_list")


class CannotSkipError(Exception):
    """A tower does not have the form that leaving out patches requires; it can process all of them."""


@dataclass
class VideoChoice:
    """What the methods decided for a video before it is encoded.

    Attributes:
        grid: its cells.
        pixels: [S,P,D], the cue `pixels`.
        plans: the plan of each method.
        cells: bool [S], the cells whose features the plans read.
    """

    grid: Grid
    pixels: Tensor
    plans: list[Plan]
    cells: Tensor

    __repr__ = shape_repr

    @classmethod
    def by(cls, methods: Sequence[Method], grid: Grid, pixels: Tensor) -> VideoChoice:
        """Runs methods in a row on the pixels [S,P,D] of the cells of a video."""
        tokens = start = Tokens.from_cells(pixels.new_zeros(1, grid.cells, 1), grid)
        plans = []
        for method in methods:
            plans.append(method.decide(tokens, pixels=tokens.pool(pixels[None], start)))
            tokens = tokens.apply(plans[-1])
        return cls(grid, pixels, plans, cells_read(plans, grid.cells))


@dataclass
class PatchChoice:
    """Which patches of the images and videos of one modality are encoded.

    Attributes:
        videos: for each image or video what was decided; None if it is encoded in full.
        patches: bool [t,h,w], the patches that are encoded, of each or of each part.
        merges: for each of `patches` the number that is merged along each side; None if the tower takes frames.
    """

    videos: list[VideoChoice | None] = field(default_factory=list)
    patches: list[Tensor] = field(default_factory=list)
    merges: list[int | None] = field(default_factory=list)

    __repr__ = shape_repr

    @property
    def is_full(self) -> bool:
        """Whether all patches are encoded."""
        return all(bool(patches.all()) for patches in self.patches)

    def packed(self) -> Tensor:
        """The patches that are encoded, bool [N], in the order of processors that keep the patches of a cell together.

        That is: frame, row and column of the cell, row and column in it.
        """
        parts = []
        for patches, merge in zip(self.patches, self.merges, strict=True):
            assert merge is not None
            t, h, w = patches.shape
            blocks = patches.reshape(t, h // merge, merge, w // merge, merge)
            parts.append(blocks.transpose(2, 3).flatten())
        return torch.cat(parts)

    def frames(self) -> Tensor:
        """The patches that are encoded, bool [F,h,w], of all frames.

        Raises:
            CannotSkipError: frames differ in size.
        """
        if len({patches.shape[1:] for patches in self.patches}) > 1:
            raise CannotSkipError("its frames differ in size")
        return torch.cat(self.patches)


def cells_read(plans: Sequence[Plan], count: int) -> Tensor:
    """The cells, of `count`, whose features the outputs of plans in a row depend on, bool [S], for one video."""
    read = plans[-1].mask[0]
    if any(plan.dest is None for plan in plans):
        return read.new_ones(count)  # a soft plan may weight all
    for plan in reversed(plans):
        assert plan.dest is not None
        if plan.representative is None:
            dest = plan.dest[0]
            read = (dest >= 0) & read[dest.clamp(min=0)]
        else:
            tokens = plan.representative[0][read]
            read = torch.zeros_like(plan.dest[0], dtype=torch.bool).index_fill(0, tokens, True)
    return read


def patches_of_cells(cells: Tensor, shape: tuple[int, int, int]) -> Tensor:
    """The patches, bool [t,h,w] of `shape`, whose area overlaps that of one of some cells, bool [T,H,W].

    A cell that is the mean, or the interpolation, of the patches that it covers depends on no others.
    """
    values = cells.float()
    for axis, size in enumerate(shape):
        count = cells.shape[axis]
        patch, cell = torch.arange(size, device=cells.device)[:, None], torch.arange(count, device=cells.device)
        overlap = (patch * count < (cell + 1) * size) & ((patch + 1) * count > cell * size)
        values = torch.tensordot(values, overlap.float(), dims=([0], [1]))  # the axis moves to the end
    return values > 0


@contextmanager
def skip_patches(model: Any, modality: str, choice: PatchChoice, shapes: Any = None) -> Iterator[None]:
    """Encodes, inside the block, only the patches of a choice; hooks are removed at its end.

    Args:
        model: a model with its language-model head.
        modality: "image" or "video".
        choice: the patches, of all images or videos of the modality.
        shapes: int64 [V,3], (t, h, w) in patches of each, of towers that pack them; None of towers that take frames.

    Raises:
        CannotSkipError: the tower does not have the form that this requires.
    """
    tower = require_tower(model, modality)
    rows = _FrameRows(choice.frames()) if shapes is None else _PackedRows(choice.packed())
    hooks = []
    try:
        if isinstance(rows, _PackedRows):
            embedded, unit = rows, next(merge for merge in choice.merges if merge is not None) ** 2
            if (windows := tower.windows(shapes)) is not None:
                order = windows[0]
                patches = order[:, None] * unit + torch.arange(unit, device=order.device)
                rows = _PackedRows(rows.read[patches.flatten().to(rows.read.device)])
            for name, child in tower.module.named_children():
                if name in _ROW_WISE:
                    for module in child if isinstance(child, nn.ModuleList) else [child]:
                        span = _RowWise(embedded if name == "patch_embed" else rows, unit)
                        hooks.append(module.register_forward_pre_hook(span.before, with_kwargs=True))
                        hooks.append(module.register_forward_hook(span.after))
        for block in tower.blocks:
            hooks.append(block.register_forward_pre_hook(rows.before, with_kwargs=True))
            # Before the hooks with which transformers records hidden states.
            hooks.append(block.register_forward_hook(rows.after, prepend=True))
        yield
    finally:
        for hook in hooks:
            hook.remove()


def require_tower(model: Any, modality: str) -> Tower:
    """The vision tower of a modality.

    Raises:
        CannotSkipError: there is none with attention.
    """
    tower = tower_of(model, modality)
    if tower is None:
        raise CannotSkipError("it has no blocks with attention")
    return tower


class _PackedRows:
    """Hooks for blocks that take the patches of all frames as one sequence [N,D] or [1,N,D], and its borders."""

    def __init__(self, read: Tensor) -> None:
        self.read, self.index = read, read.nonzero().squeeze(1)
        self._before = F.pad(read.cumsum(0), (1, 0))  # the number of patches before each that are encoded
        self._full: list[Tensor] = []

    def before(self, block: nn.Module, args: Any, kwargs: Any) -> Any:
        """A forward pre-hook: passes only the patches that are encoded."""
        hidden = args[0] if args else kwargs["hidden_states"]
        if hidden.ndim < 2 or hidden.shape[-2] != len(self.read) or hidden.shape[:-2].numel() != 1:
            raise CannotSkipError(f"its blocks take {list(hidden.shape)} for {len(self.read)} patches")
        if "grid_thw" in kwargs:
            raise CannotSkipError("its blocks process neighboring patches of the grid")
        self._full.append(hidden)
        return map_arguments(block, args, kwargs, self._take)

    def after(self, block: nn.Module, args: Any, output: Any) -> Any:
        """A forward hook: puts the results in their place."""
        full, rows = self._full.pop(), first_of(output)
        return with_first(output, full.to(rows.dtype).index_copy(rows.ndim - 2, self.index.to(rows.device), rows))

    def _take(self, name: str, value: Any) -> Any:
        if name == "max_seqlen":
            return None  # computed from the borders where it is needed
        if not isinstance(value, Tensor):
            return value
        if name == "cu_seqlens":
            # Segments without patches disappear.
            return self._before.to(value.device)[value.long()].unique_consecutive().to(value.dtype)
        if name == "attention_mask":
            raise CannotSkipError("its blocks take a mask over all patches")
        if value.ndim >= 2 and value.shape[-2] == len(self.read):
            return value.index_select(value.ndim - 2, self.index.to(value.device))
        return value


class _RowWise:
    """Hooks for a module that maps each of the N patches, or each group of `unit` patches, separately."""

    def __init__(self, rows: _PackedRows, unit: int) -> None:
        self._rows, self._unit = rows, unit
        self._applies: list[bool] = []

    def before(self, module: nn.Module, args: Any, kwargs: Any) -> Any:
        """A forward pre-hook: passes only the patches that are encoded."""
        # Patch embeddings that also take the grid add positions to all patches.
        applies = len(args) == 1 and not kwargs and len(args[0]) == len(self._rows.read)
        self._applies.append(applies)
        return ((args[0][self._rows.index.to(args[0].device)],), kwargs) if applies else None

    def after(self, module: nn.Module, args: Any, output: Any) -> Any:
        """A forward hook: puts the results in their place."""
        if not self._applies.pop():
            return None
        index, total = self._rows.index.to(output.device), len(self._rows.read)
        if len(output) * self._unit == len(index):
            index, total = index[:: self._unit] // self._unit, total // self._unit
        if len(output) != len(index):
            raise CannotSkipError(f"{type(module).__name__} returns {len(output)} rows for {len(index)} patches")
        return output.new_zeros(total, *output.shape[1:]).index_copy(0, index, output)


class _FrameRows:
    """Hooks for blocks that take frames [F,P+h*w,D], of which some may start with P class or register tokens.

    Frames with equally many patches form a batch, so that no mask is needed; the block runs once for each batch.
    """

    def __init__(self, read: Tensor) -> None:
        self.read = read.flatten(1)
        self._batches: list[tuple[Tensor, Tensor]] = []  # frames [b,1], and rows of each [b,P+k]
        self._length = 0
        self._calls: list[tuple[Any, Any]] = []

    def before(self, block: nn.Module, args: Any, kwargs: Any) -> Any:
        """A forward pre-hook: passes the first batch."""
        hidden = args[0] if args else kwargs["hidden_states"]
        frames, n = self.read.shape
        if hidden.ndim != 3 or len(hidden) != frames or not 0 <= hidden.shape[1] - n < n:
            raise CannotSkipError(f"its blocks take {list(hidden.shape)} for {frames} frames of {n} patches")
        if hidden.shape[1] != self._length:
            self._length = hidden.shape[1]
            self._batches = self._split(hidden.shape[1] - n, hidden.device)
        self._calls.append((args, kwargs))
        return self._inputs(block, *self._batches[0])

    def after(self, block: nn.Module, args: Any, output: Any) -> Any:
        """A forward hook: runs the block for the other batches, and puts all results in their place."""
        args, kwargs = self._calls[-1]
        rows = first_of(output)
        full = (args[0] if args else kwargs["hidden_states"]).to(rows.dtype).clone()
        for number, place in enumerate(self._batches):
            if number:
                args, kwargs = self._inputs(block, *place)
                rows = first_of(block.forward(*args, **kwargs))
            full[place] = rows
        self._calls.pop()
        return with_first(output, full)

    def _split(self, prefix: int, device: torch.device) -> list[tuple[Tensor, Tensor]]:
        read = F.pad(self.read, (prefix, 0), value=True).to(device)
        counts = self.read.sum(1)
        batches = []
        for count in counts.unique().tolist():
            if count:
                frames = (counts == count).nonzero().to(device)
                batches.append((frames, read[frames[:, 0]].nonzero()[:, 1].reshape(len(frames), -1)))
        return batches

    def _inputs(self, block: nn.Module, frames: Tensor, rows: Tensor) -> Any:
        def take(name: str, value: Any) -> Any:
            if not isinstance(value, Tensor):
                return value
            if value.shape[:2] == (len(self.read), self._length):
                return value[frames, rows]
            if name == "attention_mask" and value.ndim == 4 and value.shape[1] == 1:
                mask = value.expand(len(self.read), -1, -1, -1)[frames[:, 0]]
                mask = mask.gather(3, rows[:, None, None].expand(-1, 1, mask.shape[2], -1))
                queries = rows[:, None, :, None].expand(-1, 1, -1, mask.shape[3])
                return mask if mask.shape[2] == 1 else mask.gather(2, queries)
            if self._length in value.shape:
                raise CannotSkipError(f"its blocks take {name} {list(value.shape)}")
            return value

        return map_arguments(block, *self._calls[-1], take)


def map_arguments(block: nn.Module, args: Any, kwargs: Any, take: Callable[[str, Any], Any]) -> tuple[Any, Any]:
    """Applies a function of name and value to all arguments of a block, and to the members of tuples."""

    def each(name: str, value: Any) -> Any:
        return type(value)(take(name, part) for part in value) if type(value) in (tuple, list) else take(name, value)

    names = [*inspect.signature(block.forward).parameters, *[""] * len(args)]
    new_args = tuple(each(name, value) for name, value in zip(names, args, strict=False))
    return new_args, {name: each(name, value) for name, value in kwargs.items()}


def first_of(output: Any) -> Any:
    """The hidden states in the output of a block."""
    return output[0] if isinstance(output, tuple) else output


def with_first(output: Any, value: Tensor) -> Any:
    """The output of a block with other hidden states."""
    return (value, *output[1:]) if isinstance(output, tuple) else value
