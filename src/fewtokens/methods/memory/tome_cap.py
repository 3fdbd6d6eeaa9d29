"""ToMe over the frames of a stream, merged to a fixed number of slots."""

from __future__ import annotations

from typing import Any

import torch

from fewtokens.core.memory import Memory, MemoryState, Slots
from fewtokens.methods.ops.bipartite import best_match
from fewtokens.methods.ops.memory_rules import mean_key, merge_groups


class ToMeCap(Memory):
    """Merges frames by bipartite soft matching, also frames far apart in time, so that `cap` slots remain.

    ToMe (arXiv 2210.09461) with frames in the place of tokens: after every `recent` frames, slots and frames are
    divided into every other one in the order of time, each of the first set finds its most similar one of the second
    by the cosine of mean tokens, and the most similar pairs are averaged position by position, weighted by frames.

    Args:
        cap: number of slots. Default: 64.
        recent: number of frames that are merged at once, at most `cap`. Default: 16.
        on_jump: "error" (default), "shift" or "reset", what to do if time goes back; see `Memory`.
    """

    paper = "Token Merging (ToMe), arXiv 2210.09461"
    license = "written from the paper; reference code CC-BY-NC 4.0"
    cost = "M*C*(M + R) / (4 R) MACs per frame for M slots and steps of R frames, and the averages"

    def __init__(self, cap: int = 64, *, recent: int = 16, on_jump: str = "error") -> None:
        super().__init__()
        self.set_memory(cap, on_jump, recent=recent)
        if recent > cap:
            raise ValueError(f"{self.name}: recent must be at most cap={cap}, got {recent}")

    def write(self, frames: Slots, state: MemoryState, **cues: Any) -> None:
        held = min(state.frames, self.cap)
        points = Slots.concatenate([state.slots.span(0, held), frames])
        while (count := points.count) > self.cap:
            points = points.take(points.seconds[..., 0].argsort(dim=1, stable=True))
            keys = mean_key(points.features.detach())
            similarity, match = best_match(keys[:, ::2], keys[:, 1::2])
            merged = similarity.argsort(dim=1, descending=True, stable=True)[:, : count - self.cap]
            # A point is a group by itself or joins its match; then groups are numbered without gaps.
            group = torch.arange(count, device=keys.device).repeat(len(keys), 1)
            group.scatter_(1, 2 * merged, 2 * match.gather(1, merged) + 1)
            used = torch.ones_like(group).scatter_(1, 2 * merged, 0)
            group = (used.cumsum(1) - 1).gather(1, group)
            points = merge_groups(points, group, count - merged.shape[1])
        state.slots.put_span(0, points)
