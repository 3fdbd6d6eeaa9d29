"""Runs methods of the stage "encoder" between the blocks of a vision tower.

After each block the methods decide for every frame which of its tokens to merge or drop, and the next block receives
only what is left. A token is a group of patches that becomes one row of the language model; groups are merged member by
member. Outside the blocks each patch has the features of its token, so the tower, its projector and the grid stay as
they are; the rows of a token are equal, and one of them reaches the language model.

In our own encoders methods act between attention and MLP. Hooks cannot reach the residual there, so here they act after
the MLP; nothing else differs, except that attention does not weight tokens by their sizes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fewtokens.core.grid import Grid
from fewtokens.core.method import Method
from fewtokens.core.plan import Plan
from fewtokens.core.tokens import Tokens
from fewtokens.llm.tower import Tower, norm_before_mlp, projected_keys, projections
from fewtokens.llm.tower_patches import CannotSkipError, first_of, map_arguments, with_first

# Cues that hooks on a block can compute.
BLOCK_CUES = ("keys", "shift")


class TowerMerging:
    """Hooks that reduce the tokens of F frames between the blocks of a vision tower.

    Args:
        methods: methods of the stage "encoder", in order; they act up to the block that the language model reads.
        tower: the vision tower.
        frames: F.
        size: the number of rows and columns of the cells of a frame.
        merge: the number of patches along each side of a cell.
        packed: whether the tower takes the patches of all frames as one sequence, those of a cell together; otherwise
            it takes frames of patches in raster order.
    """

    def __init__(
        self, methods: Sequence[Method], tower: Tower, frames: int, size: tuple[int, int], merge: int, *, packed: bool
    ) -> None:
        self._methods, self._tower, self._packed = methods, tower, packed
        self._frames, self._size, self._merge = frames, size, merge
        self._tokens: Tokens | None = None
        self._full: list[Tensor] = []
        self._layer = 0
        # Of the block that runs, by row.
        self._keys: Tensor | None = None
        self._before_mlp: Tensor | None = None

    def plan(self, frames: slice) -> Plan:
        """The reduction of some of the frames, which form a video, as a plan for their cells; B is 1.

        Raises:
            CannotSkipError: the tower has not run.
        """
        if self._tokens is None:
            raise CannotSkipError("its blocks have not run")
        assignment, count = self._tokens.assignment[frames], self._tokens.count[frames]
        start = F.pad(count.cumsum(0), (1, 0))[:-1]
        dest = torch.where(assignment < 0, -1, assignment + start[:, None]).flatten()
        total = int(count.sum())
        # Cells of a token have equal rows, so any of them may be copied.
        cell = torch.arange(len(dest), device=dest.device)
        copied = dest.new_full((total + 1,), len(dest))
        copied = copied.scatter_reduce(0, torch.where(dest < 0, total, dest), cell, "amin")[:total]
        return Plan(count.sum()[None], total, dest[None], copied[None])

    @contextmanager
    def attached(self) -> Iterator[None]:
        """Reduces tokens while the tower encodes inside the block; hooks are removed at its end.

        Raises:
            CannotSkipError: the tower does not have the form that this requires.
        """
        if hasattr(self._tower.module, "fullatt_block_indexes"):
            raise CannotSkipError("its blocks attend within windows")
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
        if self._tokens is None:
            self._find_rows(hidden)
            features = flat[self._members].flatten(2)
            prefix = flat[self._prefix] if self._prefix.numel() else None
            self._tokens = Tokens.from_cells(features, Grid(1, *self._size), prefix)
        self._full.append(hidden)
        tokens = self._tokens
        # The patches at which the tokens are, for their positions and their order.
        places = self._members[torch.arange(self._frames, device=hidden.device)[:, None], tokens.cell]
        if self._packed:
            rows = self._patches(tokens.features)[tokens.mask].flatten(0, 1)
            places = places[tokens.mask].flatten()
        else:
            if not bool(tokens.mask.all()):
                raise CannotSkipError("its frames must keep equally many tokens")
            self._order = places.flatten(1).argsort(dim=1, stable=True)[..., None]
            rows = self._patches(tokens.features).flatten(1, 2).take_along_dim(self._order, 1)
            rows = rows if tokens.prefix is None else torch.cat([tokens.prefix, rows], 1)
        rows = rows.reshape(*hidden.shape[: hidden.ndim - 2], -1, hidden.shape[-1])

        def take(name: str, value: Any) -> Any:
            if value is hidden:
                return rows
            if name == "max_seqlen" or not isinstance(value, Tensor):
                return None if name == "max_seqlen" else value
            if name == "cu_seqlens":
                if len(value) != self._frames + 1:
                    raise CannotSkipError("its blocks attend to more or less than a frame")
                return F.pad((tokens.count * self._unit).cumsum(0), (1, 0)).to(value.dtype)
            if name == "attention_mask":
                raise CannotSkipError("its blocks take a mask over all patches")
            if self._packed and value.ndim >= 2 and value.shape[-2] == len(flat):
                return value.index_select(value.ndim - 2, places)
            return value

        return map_arguments(block, args, kwargs, take)

    def _after(self, block: nn.Module, args: Any, output: Any) -> Any:
        """A forward hook: runs the methods, and gives each patch the features of its token."""
        full, rows, tokens = self._full.pop(), first_of(output), self._tokens
        assert tokens is not None
        cues = {}
        if self._keys is not None:
            cues["keys"] = self._by_token(self._keys)
        if self._before_mlp is not None:
            cues["shift"] = self._by_token((rows.detach() - self._before_mlp).float().norm(dim=-1, keepdim=True))[
                ..., 0
            ]
        if self._packed:
            features = tokens.features.to(rows.dtype).clone()
            features[tokens.mask] = rows.reshape(-1, self._unit * rows.shape[-1])
            tokens = tokens.replace(features=features)
        else:
            prefix = tokens.num_prefix
            features = self._by_patch(rows).flatten(2)
            tokens = tokens.replace(features=features, prefix=rows[:, :prefix] if prefix else None)
        depth = self._tower.used + 1
        if self._layer < depth:
            for method in self._methods:
                before = tokens
                own = {name: cues[name] for name in method.needs}
                tokens = method(before, **own, layer=self._layer, depth=depth)
                cues = {name: tokens.pool(cue, before) for name, cue in cues.items()}
        self._layer += 1
        self._tokens = tokens
        return with_first(output, self._spread(full.to(rows.dtype), tokens))

    def _spread(self, full: Tensor, tokens: Tokens) -> Tensor:
        """Gives each patch the features of its token; patches without one keep theirs."""
        flat = full.reshape(-1, full.shape[-1]).clone()
        index = tokens.assignment.clamp(min=0)[..., None].expand(-1, -1, tokens.C)
        cells = self._patches(tokens.features.gather(1, index))
        dropped = (tokens.assignment < 0)[..., None, None]
        flat[self._members] = torch.where(dropped, flat[self._members], cells)
        if tokens.prefix is not None:
            flat[self._prefix] = tokens.prefix
        return flat.view_as(full)

    def _by_token(self, values: Tensor) -> Tensor:
        """Averages values of the rows that a block processed over the patches of each token, [F,N,d]."""
        tokens = self._tokens
        assert tokens is not None
        if not self._packed:
            return self._by_patch(values).mean(2)
        means = values.reshape(-1, self._unit, values.shape[-1]).mean(1)
        by_token = means.new_zeros(*tokens.mask.shape, means.shape[-1])
        by_token[tokens.mask] = means
        return by_token

    def _by_patch(self, values: Tensor) -> Tensor:
        """Values of rows in the order of a block that takes frames, by token and patch, [F,N,unit,d]."""
        assert self._tokens is not None
        values = values[:, self._tokens.num_prefix :].take_along_dim(self._order.argsort(1), 1)
        return values.unflatten(1, (-1, self._unit))

    def _find_rows(self, hidden: Tensor) -> None:
        """Sets the rows of the patches of each cell, int64 [F,S,unit], and of class and register tokens [F,P]."""
        F_, (H, W), m = self._frames, self._size, self._merge
        cells, self._unit = H * W, m * m
        n = cells * self._unit
        length = hidden.shape[-2] // F_ if self._packed else hidden.shape[-2]
        if (not self._packed and hidden.shape[:-2] != (F_,)) or not 0 <= length - n < (1 if self._packed else n):
            raise CannotSkipError(f"its blocks take {list(hidden.shape)} for {F_} frames of {n} patches")
        first = length * torch.arange(F_, device=hidden.device)[:, None]
        patch = torch.arange(n, device=hidden.device)
        if not self._packed:
            patch = patch.reshape(H, m, W, m).transpose(1, 2).flatten() + length - n
        self._members = (first + patch).unflatten(1, (cells, self._unit))
        self._prefix = first + torch.arange(length - n, device=hidden.device)

    def _patches(self, features: Tensor) -> Tensor:
        """Splits the features of tokens [...,unit*C] into those of their patches [...,unit,C]."""
        return features.unflatten(-1, (self._unit, -1))
