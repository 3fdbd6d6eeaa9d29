"""TempMe, its training-free part: clips of a video are joined step by step, and tokens merge within each."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from fewtokens.core.grid import Grid
from fewtokens.core.method import Reducer
from fewtokens.core.plan import Plan, group_count
from fewtokens.core.tokens import Tokens
from fewtokens.methods.ops.groups import allocate, merge_within


class TempMe(Reducer):
    """Merges within frames, then within pairs of frames, then within longer clips.

    TempMe (arXiv 2409.01156), progressive multi-granularity merging, applied to features here and by its matching
    alone: the paper merges in the blocks of CLIP, adds a learned frame position before clips are joined, and trains 0.5
    M parameters. The count falls by the same factor in every round.

    Args:
        keep: budget, a fraction of the cells (float), a count (int) or "8/frame"; at least one token for each clip of
            the last round. Default: 0.25.
        joins: number of consecutive clips joined in each round after the first, each at least 1. Default: (2, 2, 3), as
            in the paper, where it makes one clip of 12 frames.
    """

    paper = "TempMe: Video Temporal Token Merging, arXiv 2409.01156"
    license = "written from the description; reference code MIT, with files derived from a non-commercial source"
    cost = "O(sum over rounds of N m C / 4) with m tokens per clip"

    def __init__(self, keep: float | int | str = 0.25, *, joins: Sequence[int] = (2, 2, 3)) -> None:
        super().__init__()
        self.set_budget(keep)
        if any(not isinstance(n, int) or n < 1 for n in joins):
            raise ValueError(f"joins must be integers of at least 1, got {joins!r}")
        self.joins = tuple(joins)

    def _frames(self) -> list[int]:
        """The number of frames of a clip in each round."""
        frames = [1]
        for join in self.joins:
            frames.append(frames[-1] * join)
        return frames

    def min_count(self, grid: Grid) -> int:
        return -(-grid.T // self._frames()[-1])

    def plan(self, tokens: Tokens, **cues: Any) -> Plan:
        tokens = tokens.replace(features=tokens.features.detach())
        merged = Plan.identity(tokens)
        target, start = self.counts(tokens), tokens.count
        rounds = self._frames()
        for round_index, frames in enumerate(rounds, 1):
            clips = -(-tokens.grid.T // frames)
            group = (tokens.frame // frames).masked_fill(~tokens.mask, -1)
            size = group_count(group, clips)
            # The same factor in every round, at least one token per clip.
            share = start * (target / start) ** (round_index / len(rounds))
            total = share.ceil().long().maximum((size > 0).sum(1)).minimum(tokens.count)
            total = target if round_index == len(rounds) else torch.maximum(total, target)
            plan = merge_within(tokens, group, allocate(total, size))
            tokens, merged = tokens.apply(plan), merged.then(plan)
        return merged
