"""Tokens between the blocks of an encoder, where merging must cost little."""

from __future__ import annotations

from functools import cached_property
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from fewtokens.core.plan import Plan, readable, weighted_row_sum
from fewtokens.core.tokens import Tokens


class BlockTokens(Tokens):
    """Tokens whose positions and assignment are computed when they are read.

    Merging changes both in every block, but most methods read neither. Merging therefore moves only the rows and the
    sizes; the rest follows from the tokens before the first block and the composed plans. No slot is padding. Any other
    change returns plain `Tokens`.

    Attributes:
        rows: [B,P+N,C], prefix and features in one tensor.
        row_sizes: [B,P+N], the sizes of the tokens, 1 for the prefix.
        start: the tokens that these were merged from, with features of no channels.
        dest: int64 [B,N'], the token that each token of `start` was merged into.
    """

    rows: Tensor
    row_sizes: Tensor
    start: Tokens
    dest: Tensor

    def __new__(cls, **fields: Any) -> Tokens:  # type: ignore[misc]
        return Tokens(**fields)

    @staticmethod
    def possible(tokens: Tokens) -> bool:
        """Whether tokens without padding have the form that is required here: no codes or attribution, on a CPU."""
        return tokens.codes is None and tokens.attribution is None and readable(tokens.mask)

    @staticmethod
    def of(tokens: Tokens, rows: Tensor) -> BlockTokens:
        """Tokens with new rows of prefix and features, [B,P+N,C]."""
        if isinstance(tokens, BlockTokens):
            return _create(tokens.start, rows, tokens.row_sizes, tokens.mask, tokens.dest)
        start = tokens.replace(features=tokens.features.new_empty(*tokens.mask.shape, 0), prefix=None)
        dest = torch.arange(tokens.N).expand(tokens.B, -1)
        row_sizes = F.pad(tokens.sizes, (rows.shape[1] - tokens.N, 0), value=1.0)
        return _create(start, rows, row_sizes, tokens.mask, dest)

    @cached_property
    def _placed(self) -> Tokens:
        return self.start.apply(Plan(self.count, self.N, self.dest))

    @cached_property
    def positions(self) -> Tensor:
        """As in `Tokens`, computed on first use."""
        return self._placed.positions

    @cached_property
    def assignment(self) -> Tensor:
        """As in `Tokens`, computed on first use."""
        return self._placed.assignment

    def apply(self, plan: Plan) -> Tokens:
        if not self._merged_by(plan):
            return super().apply(plan)
        assert plan.dest is not None
        P, M = self.num_prefix, self.num_prefix + plan.num_slots
        dest = plan.dest + P
        if P:
            dest = torch.cat([torch.arange(P).expand(self.B, -1), dest], 1)
        rows = dest.flatten() if self.B == 1 else (dest + M * torch.arange(self.B)[:, None]).flatten()
        wide = self.row_sizes.to(torch.promote_types(self.rows.dtype, torch.float32)).flatten()
        total = wide.new_zeros(self.B * M).index_add_(0, rows, wide)
        share = (wide / total.index_select(0, rows).clamp_(min=torch.finfo(wide.dtype).tiny)).reshape(dest.shape)
        merged = weighted_row_sum(self.rows.to(share.dtype), share, rows, M).to(self.rows.dtype)
        sizes = total.reshape(self.B, M).to(self.row_sizes.dtype)
        return _create(self.start, merged, sizes, self.mask[:, : plan.num_slots], plan.dest.gather(1, self.dest))

    def _merged_by(self, plan: Plan) -> bool:
        """Whether a plan only averages tokens, all of them, without padding in the result."""
        if plan.dest is None or any(value is not None for value in (plan.representative, plan.shares, plan.sizes)):
            return False
        if plan.dest.shape != self.mask.shape or not plan.dest.numel() or plan.num_slots > self.N:
            return False
        return int(plan.dest.min()) >= 0 and int(plan.count.min()) == plan.num_slots


def _create(start: Tokens, rows: Tensor, row_sizes: Tensor, mask: Tensor, dest: Tensor) -> BlockTokens:
    """Creates the tokens without the checks of the constructor, which take as long as merging."""
    P = rows.shape[1] - mask.shape[1]
    tokens = object.__new__(BlockTokens)
    tokens.__dict__.update(
        vars(start),
        features=rows[:, P:],
        sizes=row_sizes[:, P:],
        mask=mask,
        prefix=rows[:, :P] if P else None,
        rows=rows,
        row_sizes=row_sizes,
        start=start,
        dest=dest,
    )
    for name in ("positions", "assignment"):
        del tokens.__dict__[name]
    return tokens
