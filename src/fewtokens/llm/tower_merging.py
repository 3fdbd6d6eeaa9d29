"""Runs methods of the stage "encoder" between the blocks of a vision tower.

After each block the methods decide for every frame which of its tokens to merge or drop, and the next block receives
only what is left. A token is a group of patches that becomes one row of the language model; groups are merged member by
member. Outside the blocks each patch has the features of its token, so the tower, its projector and the grid stay as
they are; the rows of a token are equal, and one of them reaches the language model. Families that also read earlier
blocks (DeepStack, or several layers side by side) have rows from before a merge, which differ: then it is their mean.

Some towers attend within windows, except in a few blocks (Qwen2.5-VL). There the methods act on each window instead of
each frame, also after blocks that attend to whole frames, so a token never stands for cells of two windows. The budget
of a frame is split over its windows by their cells, at least one token each; other arguments, such as r, apply to each
window.

In our own encoders methods act between attention and MLP. Hooks cannot reach the residual there, so here they act after
the MLP; nothing else differs, except that attention does not weight tokens by their sizes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from copy import copy
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fewtokens.core.budget import Budget
from fewtokens.core.grid import Grid
from fewtokens.core.method import Method
from fewtokens.core.plan import Plan
from fewtokens.core.shapes import shape_repr
from fewtokens.core.tokens import Tokens
from fewtokens.llm.tower import Tower, norm_before_mlp, projected_keys, projections
from fewtokens.llm.tower_patches import CannotSkipError, first_of, map_arguments, with_first
from fewtokens.methods.ops.groups import allocate

# Cues that hooks on a block can compute.
BLOCK_CUES = ("keys", "shift")


@dataclass
class Region:
    """Frames, or windows of equal shape and budget: where methods may merge tokens, B at once.

    Attributes:
        methods: the methods with the budget of each.
        grid: the cells of one.
        cells: int64 [B,S], the number of each cell, of all F*H*W.
        rows: int64 [B,S,unit], the rows of the patches of each cell in the sequence of the tower, over all frames.
        prefix: int64 [B,P], the rows of class and register tokens.
        tokens: what is left of them [B,N,unit*C]; set when the first block runs.
    """

    methods: Sequence[Method]
    grid: Grid
    cells: Tensor
    rows: Tensor
    prefix: Tensor
    tokens: Tokens | None = None

    __repr__ = shape_repr


class TowerMerging:
    """Hooks that reduce the tokens of F frames between the blocks of a vision tower.

    Args:
        methods: methods of the stage "encoder", in order; they act up to the block that the language model reads.
        tower: the vision tower.
        frames: F.
        size: the number of rows and columns of the cells of a frame.
        merge: the number of patches along each side of a cell.
        packed: whether the tower takes the patches of all frames as one sequence; otherwise it takes frames.
        raster: whether the patches of a frame are in raster order; otherwise those of a cell are together.
        windows: see `Tower.windows`; None without windows.
    """

    def __init__(
        self,
        methods: Sequence[Method],
        tower: Tower,
        frames: int,
        size: tuple[int, int],
        merge: int,
        *,
        packed: bool,
        raster: bool,
        windows: tuple[Tensor, Tensor] | None = None,
    ) -> None:
        self._methods, self._tower, self._windows = methods, tower, windows
        self._packed, self._raster = packed, raster
        self._frames, self._size, self._merge = frames, size, merge
        self._regions: list[Region] = []
        self._full: list[Tensor] = []
        self._layer = 0
        # Of the block that runs: the place of each of its rows among those of the regions, and its cues by row.
        self._order: Tensor | None = None
        self._keys: Tensor | None = None
        self._before_mlp: Tensor | None = None

    def plan(self, frames: slice, rows: Sequence[Tensor]) -> Plan:
        """The reduction of some of the frames, which form a video, as a plan for their cells; B is 1.

        Args:
            frames: the frames.
            rows: what the language model reads of their cells, [n,D] each. The rows of a token are copied if they are
                equal, else averaged.

        Raises:
            CannotSkipError: the tower has not run.
        """
        if not self._regions:
            raise CannotSkipError("its blocks have not run")
        H, W = self._size
        labels = torch.full((self._frames * H * W,), -1, device=self._regions[0].cells.device)
        start = 0
        for region in self._regions:
            assignment = _tokens(region).assignment
            number = start + _tokens(region).N * torch.arange(len(assignment), device=labels.device)[:, None]
            labels[region.cells] = torch.where(assignment < 0, -1, assignment + number)
            start += assignment.shape[0] * _tokens(region).N
        own = labels.view(self._frames, -1)[frames].flatten()
        used = own >= 0
        names, rank = own[used].unique(return_inverse=True)
        dest = torch.full_like(own, -1)
        dest[used] = rank
        cell = used.nonzero().squeeze(1)
        copied = dest.new_full((len(names),), len(dest)).scatter_reduce(0, rank, cell, "amin")
        equal = all(torch.equal(values[copied[rank]], values[cell]) for values in rows)
        plan = Plan(dest.new_tensor([len(names)]), len(names), dest[None], copied[None] if equal else None)
        grid = Grid(frames.stop - frames.start, H, W)
        return plan.sort_by_position(Tokens.from_cells(torch.zeros(1, grid.cells, 1, device=dest.device), grid))

    @contextmanager
    def attached(self) -> Iterator[None]:
        """Reduces tokens while the tower encodes inside the block; hooks are removed at its end.

        Raises:
            CannotSkipError: the tower does not have the form that this requires.
        """
        hooks = []
        try:
            for block, attention in zip(self._tower.blocks, self._tower.attentions, strict=True):
                hooks.append(block.register_forward_pre_hook(self._before, with_kwargs=True))
                hooks.append(block.register_forward_hook(self._after, prepend=True))
                hooks += self._cue_hooks(block, attention)
            yield
        finally:
            for hook in hooks:
                hook.remove()

    def _cue_hooks(self, block: nn.Module, attention: nn.Module) -> list[Any]:
        needs, hooks = {need for method in self._methods for need in method.needs}, []
        if "keys" in needs:

            def record_keys(_: nn.Module, args: Any, output: Tensor) -> None:
                self._keys = projected_keys(attention, output.detach()).float().mean(-2)

            hooks.append(projections(attention)[-1].register_forward_hook(record_keys))
        if "shift" in needs:

            def record_before_mlp(_: nn.Module, args: Any) -> None:
                self._before_mlp = args[0].detach()

            if (norm := norm_before_mlp(block)) is None:
                raise CannotSkipError("its blocks have no norm before the MLP")
            hooks.append(norm.register_forward_pre_hook(record_before_mlp))
        return hooks

    def _before(self, block: nn.Module, args: Any, kwargs: Any) -> Any:
        """A forward pre-hook: passes the tokens that are left."""
        hidden = args[0] if args else kwargs["hidden_states"]
        flat = hidden.reshape(-1, hidden.shape[-1])
        if not self._regions:
            self._find_regions(hidden)
            for region in self._regions:
                prefix = flat[region.prefix] if region.prefix.numel() else None
                region.tokens = Tokens.from_cells(flat[region.rows].flatten(2), region.grid, prefix)
        self._full.append(hidden)
        rows, places = self._left()
        self._order = places.argsort(stable=True)
        rows, places = rows[self._order], places[self._order]
        # The number of rows before each of the tower.
        left = F.pad(torch.bincount(places, minlength=len(flat)).cumsum(0), (1, 0))
        if not self._packed:
            counts = left[:: len(flat) // self._frames].diff()
            if bool((counts != counts[0]).any()):
                raise CannotSkipError("its frames must keep equally many tokens")
        shape = (len(hidden), -1) if hidden.ndim == 3 else (-1,)
        rows = rows.view(*shape, hidden.shape[-1])

        def take(name: str, value: Any) -> Any:
            if value is hidden:
                return rows
            if name == "max_seqlen" or not isinstance(value, Tensor):
                return None if name == "max_seqlen" else value
            if name == "cu_seqlens":
                return left[value.long()].unique_consecutive().to(value.dtype)
            if name == "attention_mask":
                raise CannotSkipError("its blocks take a mask over all patches")
            if self._packed:
                along = value.ndim >= 2 and value.shape[-2] == len(flat)
                return value.index_select(value.ndim - 2, places) if along else value
            if value.ndim == 3 and value.shape[1] == hidden.shape[1] and len(value) in (1, len(hidden)):
                every = value.expand(len(hidden), -1, -1).flatten(0, 1)
                return every[places].view(len(hidden), -1, value.shape[2])
            if hidden.shape[1] in value.shape:
                raise CannotSkipError(f"its blocks take {name} {list(value.shape)}")
            return value

        return map_arguments(block, args, kwargs, take)

    def _left(self) -> tuple[Tensor, Tensor]:
        """The rows that are left, region by region, [n,C], and their places in the sequence of the tower, int64 [n]."""
        rows, places = [], []
        for region in self._regions:
            tokens = _tokens(region)
            index = torch.arange(tokens.B, device=tokens.device)[:, None]
            if tokens.prefix is not None:
                rows.append(tokens.prefix.flatten(0, 1))
                places.append(region.prefix.flatten())
            rows.append(self._patches(tokens.features)[tokens.mask].flatten(0, 1))
            # The patches at which the tokens are, for their positions and their order.
            places.append(region.rows[index, tokens.cell][tokens.mask].flatten())
        return torch.cat(rows), torch.cat(places)

    def _by_region(self, values: Tensor) -> Iterator[tuple[Region, Tensor, Tensor]]:
        """Yields each region, its class and register tokens [B,P,d], and its patches [n,unit,d], of values by row."""
        assert self._order is not None
        flat = values.reshape(-1, values.shape[-1])
        flat = torch.empty_like(flat).index_copy(0, self._order, flat)
        for region in self._regions:
            B, P = region.prefix.shape
            prefix, rows, flat = flat.split(
                [B * P, n := int(_tokens(region).mask.sum()) * self._unit, len(flat) - B * P - n]
            )
            yield region, prefix.unflatten(0, (B, P)), rows.unflatten(0, (-1, self._unit))

    def _after(self, block: nn.Module, args: Any, output: Any) -> Any:
        """A forward hook: runs the methods, and gives each patch the features of its token."""
        full, rows = self._full.pop(), first_of(output)
        cues: dict[str, list[Tensor]] = {}
        if self._keys is not None:
            cues["keys"] = self._by_token(self._keys)
        if self._before_mlp is not None:
            shift = (rows.detach() - self._before_mlp).float().norm(dim=-1, keepdim=True)
            cues["shift"] = [values[..., 0] for values in self._by_token(shift)]
        depth = self._tower.used + 1
        for number, (region, prefix, patches) in enumerate(self._by_region(rows)):
            tokens = _tokens(region)
            features = tokens.features.to(rows.dtype).masked_scatter(tokens.mask[..., None], patches.flatten(1))
            tokens = tokens.replace(features=features, prefix=prefix if prefix.shape[1] else None)
            own = {name: values[number] for name, values in cues.items()}
            for method in region.methods if self._layer < depth else ():
                before = tokens
                needs = {name: own[name] for name in method.needs}
                tokens = method(before, **needs, layer=self._layer, depth=depth)
                own = {name: tokens.pool(cue, before) for name, cue in own.items()}
            region.tokens = tokens
        self._layer += 1
        return with_first(output, self._spread(full.to(rows.dtype)))

    def _spread(self, full: Tensor) -> Tensor:
        """Gives each patch the features of its token; patches without one keep theirs."""
        flat = full.reshape(-1, full.shape[-1]).clone()
        for region in self._regions:
            tokens = _tokens(region)
            index = tokens.assignment.clamp(min=0)[..., None].expand(-1, -1, tokens.C)
            cells = self._patches(tokens.features.gather(1, index))
            dropped = (tokens.assignment < 0)[..., None, None]
            flat[region.rows] = torch.where(dropped, flat[region.rows], cells)
            if tokens.prefix is not None:
                flat[region.prefix] = tokens.prefix
        return flat.view_as(full)

    def _by_token(self, values: Tensor) -> list[Tensor]:
        """Averages values of the rows that a block processed over the patches of each token, [B,N,d] by region."""
        means = []
        for region, _, patches in self._by_region(values):
            mask = _tokens(region).mask
            empty = patches.new_zeros(*mask.shape, patches.shape[-1])
            means.append(empty.masked_scatter(mask[..., None], patches.mean(1)))
        return means

    def _find_regions(self, hidden: Tensor) -> None:
        """Sets the regions from the input of the first block."""
        F_, (H, W), m, device = self._frames, self._size, self._merge, hidden.device
        S, self._unit = H * W, m * m
        n = S * self._unit
        length = hidden.shape[-2] // F_ if self._packed else hidden.shape[-2]
        if (not self._packed and hidden.shape[:-2] != (F_,)) or not 0 <= length - n < (1 if self._packed else n):
            raise CannotSkipError(f"its blocks take {list(hidden.shape)} for {F_} frames of {n} patches")
        cells = torch.arange(F_ * S, device=device).view(F_, S)
        if self._windows is not None:
            order, borders = (part.to(device) for part in self._windows)
            if len(order) != F_ * S:
                raise CannotSkipError("its windows consist of patches, not of the groups that become rows")
            rows = order.argsort()[:, None] * self._unit + torch.arange(self._unit, device=device)
            for methods, grid, own in self._window_regions(order, borders):
                self._regions.append(Region(methods, grid, own, rows[own], own[:, :0]))
            return
        first = length * torch.arange(F_, device=device)[:, None]
        patch = torch.arange(n, device=device)
        if self._raster:
            patch = patch.view(H, m, W, m).transpose(1, 2).flatten() + length - n
        rows = (first + patch).unflatten(1, (S, self._unit))
        prefix = first + torch.arange(length - n, device=device)
        self._regions.append(Region(self._methods, Grid(1, H, W), cells, rows, prefix))

    def _window_regions(self, order: Tensor, borders: Tensor) -> Iterator[tuple[Sequence[Method], Grid, Tensor]]:
        """Yields the windows of equal shape and budgets: methods, grid, and cells int64 [B,S] in raster order."""
        H, W = self._size
        windows = [own.sort().values for own in order.split(borders.diff().tolist())]
        in_frame = len(windows) // self._frames
        sizes = torch.tensor([[len(own) for own in windows[:in_frame]]])
        budgets = []
        for method in self._methods:
            total = method.planned_count(Grid(1, H, W))
            if total is not None and total < in_frame:
                raise ValueError(
                    f"{method.spec} keeps {total} tokens of a frame, but the vision tower attends within {in_frame} "
                    "windows, each of which keeps at least one; increase keep"
                )
            budgets.append([None] * in_frame if total is None else allocate(torch.tensor([total]), sizes)[0].tolist())
        groups: dict[tuple[Any, ...], list[Tensor]] = {}
        for number, own in enumerate(windows):
            rows = int((own[-1] - own[0]) // W) + 1
            key = (rows, len(own) // rows, *(counts[number % in_frame] for counts in budgets))
            groups.setdefault(key, []).append(own)
        for (rows, columns, *counts), members in groups.items():
            methods = [_with_count(method, count) for method, count in zip(self._methods, counts, strict=True)]
            yield methods, Grid(1, rows, columns), torch.stack(members)

    def _patches(self, features: Tensor) -> Tensor:
        """Splits the features of tokens [...,unit*C] into those of their patches [...,unit,C]."""
        return features.unflatten(-1, (self._unit, -1))


def _tokens(region: Region) -> Tokens:
    assert region.tokens is not None
    return region.tokens


def _with_count(method: Method, count: int | None) -> Method:
    """The method with a budget of `count` tokens; itself if it has no budget."""
    if count is None:
        return method
    part = copy(method)
    part.budget = Budget(count, "count")
    part.keep = part.budget.keep
    return part
