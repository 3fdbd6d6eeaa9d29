"""K-means over the frames of a stream, with a fixed number of clusters."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F

from fewtokens.core.memory import Memory, MemoryState, Slots
from fewtokens.methods.ops.memory_rules import mean_key, merge_groups


class KMeansCap(Memory):
    """Clusters frames by k-means, also frames far apart in time, so that `cap` slots remain.

    After every `recent` frames, slots, weighted by their frames, and these frames are clustered by the cosine of mean
    tokens. The first centroids are those that are least similar to any earlier one in time, so that the result is
    deterministic. Each cluster is averaged position by position.

    Args:
        cap: number of clusters. Default: 64.
        recent: number of frames that are clustered at once. Default: 16.
        iterations: number of Lloyd iterations. Default: 3.
        on_jump: "error" (default), "shift" or "reset", what to do if time goes back; see `Memory`.
    """

    paper = "none"
    license = "none needed"
    cost = "(M + R)*C*(M + R + iterations * M) / R MACs per frame for M slots and steps of R frames, and the averages"

    def __init__(self, cap: int = 64, *, recent: int = 16, iterations: int = 3, on_jump: str = "error") -> None:
        super().__init__()
        self.set_memory(cap, on_jump, recent=recent)
        if iterations < 1:
            raise ValueError(f"{self.name}: iterations must be at least 1, got {iterations}")
        self.iterations = iterations

    def write(self, frames: Slots, state: MemoryState, **cues: Any) -> None:
        if state.frames + self.recent <= self.cap:
            state.slots.put_span(state.frames, frames)
            return
        points = Slots.concatenate([state.slots, frames])
        # By time, free slots last.
        key = points.seconds[..., 0].masked_fill(~points.mask, torch.inf)
        points = points.take(key.argsort(dim=1, stable=True))
        keys = mean_key(points.features.detach())
        weighted = keys * points.mass[..., None].float()
        similarity = keys @ keys.transpose(1, 2)
        earlier = torch.ones_like(similarity[0], dtype=torch.bool).tril(-1)
        redundancy = similarity.masked_fill(~earlier, -torch.inf).amax(2).masked_fill(~points.mask, torch.inf)
        first = redundancy.argsort(dim=1, stable=True)[:, : self.cap].sort(1).values
        row = torch.arange(len(keys), device=keys.device)[:, None]
        centroids, free = keys[row, first], ~points.mask[row, first]
        for _ in range(self.iterations):
            group = (keys @ centroids.transpose(1, 2)).masked_fill(free[:, None], -torch.inf).argmax(2)
            total = torch.zeros_like(centroids).scatter_add(1, group[..., None].expand_as(weighted), weighted)
            centroids = torch.where((total != 0).any(2, keepdim=True), F.normalize(total, dim=2), centroids)
        state.slots.put_span(0, merge_groups(points, group, self.cap))
