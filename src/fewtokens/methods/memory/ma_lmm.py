"""MA-LMM: each place of the frame merges its own most similar neighbors in time."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from fewtokens.core.memory import Memory, MemoryState, Slots, frame_at
from fewtokens.core.tokens import Tokens
from fewtokens.methods.ops.memory_rules import adjacency_stats, merge_adjacent


class MALMM(Memory):
    """Holds `cap` tokens of each place in the frame; beyond it, the most similar neighbors in time of the place merge.

    The memory bank of MA-LMM (arXiv 2404.05726). Averages are weighted by the number of frames, as in the published
    code, and of equally similar pairs the oldest is merged. A place that rests is one token while another keeps its
    changes, so that the tokens of a slot stand for different seconds: slot m has the m-th token of each place. `read`
    gives each token its own size and, as the frame of its position, its own mean second. The mean second of a slot is
    the mean over its places, and its first and last second are those of any place. The language model of the paper
    reads the bank by a Q-Former with a bank of earlier queries, which is not part of this method.

    Args:
        cap: number of slots. Default: 64.
        on_jump: "error" (default), "shift" or "reset", what to do if time goes back; see `Memory`.
    """

    spare = 1
    paper = "MA-LMM, arXiv 2404.05726"
    license = "written from the paper; reference code MIT"
    cost = "P*(3*C + M) MACs per frame of P tokens for a memory of M slots"

    def __init__(self, cap: int = 64, *, on_jump: str = "error") -> None:
        super().__init__()
        self.set_memory(cap, on_jump)

    def new_stats(self, B: int, P: int, C: int, device: torch.device) -> dict[str, Tensor]:
        stats = adjacency_stats(B * P, self.cap, device)
        # The numbers of a slot with one token, for each place.
        stats["info"] = torch.zeros(B * P, self.cap + self.spare, 6, dtype=torch.float64, device=device)
        return {name: value.unflatten(0, (B, P)) for name, value in stats.items()}

    def write(self, frames: Slots, state: MemoryState, **cues: Any) -> None:
        B, _, P, C = frames.features.shape
        numbers = frames.info[..., :4].expand(-1, P, -1)
        frame = Slots(
            frames.features.reshape(B * P, 1, 1, C), torch.cat([numbers, frames.place[:, 0]], 2).view(-1, 1, 6)
        )
        places = self._places(state)
        merge_adjacent(places, frame, state.frames)
        state.slots.features = places.slots.features.view_as(state.slots.features)
        state.stats = {
            name: value.unflatten(0, (B, P)) for name, value in (places.stats | {"info": places.slots.info}).items()
        }

    def held(self, state: MemoryState, **cues: Any) -> Slots:
        places = self._by_place(state)
        mass, seconds = places.info[..., 0], places.info[..., 1:4]
        seconds = torch.stack([seconds[..., 0].mean(2), seconds[..., 1].amin(2), seconds[..., 2].amax(2)], 2)
        return Slots.create(places.features, mass.mean(2), seconds, places.info[..., 4:])

    def read(self, state: MemoryState, **cues: Any) -> Tokens:
        read = super().read(state, **cues)
        assert read.grid.times is not None
        return self._with_own_seconds(read, state, read.grid.times.expand(read.B, -1))

    def forward(self, tokens: Tokens, **cues: Any) -> Tokens:
        state, times = self._push_video(tokens, **cues)
        read = self.read(state, **cues)
        B, P, (T, H, W) = tokens.B, state.slots.features.shape[2], tokens.grid.shape
        # The slot of each place that contains a frame is the last one that begins before its end.
        first = self._by_place(state).info[..., 2].transpose(1, 2).cpu()
        started = first.masked_fill(~self._used(state).cpu()[:, None], torch.inf).contiguous()
        slot = torch.searchsorted(started, times[:, None].expand(-1, P, -1).contiguous(), right=True) - 1
        place = read.assignment[:, : H * W]  # the token of each cell in the first slot
        index = slot.to(read.device).transpose(1, 2).gather(2, place[:, None].expand(-1, T, -1))
        held = times.isfinite()
        real = tokens.grid.cell_mask(B).to(read.device) & held.repeat_interleave(H * W, 1).to(read.device)
        read = read.replace(
            grid=tokens.grid,
            assignment=(index * P + place[:, None]).flatten(1).masked_fill(~real, -1),
            meta={**tokens.meta, **read.meta, "forgotten": (~held).sum(1).tolist()},
        )
        return self._with_own_seconds(read, state, times)

    def _places(self, state: MemoryState) -> MemoryState:
        """A state in which each place of a frame is a separate video, whose slots have one token.

        The tensor of the slots stores the tokens of each place one after another, so that a frame writes P rows of it.
        """
        M, _, C = state.slots.features.shape[1:]
        stats = {name: value.flatten(0, 1) for name, value in state.stats.items()}
        slots = Slots(state.slots.features.view(-1, M, 1, C), stats.pop("info"))
        return replace(state, slots=slots, recent=None, stats=stats)

    def _by_place(self, state: MemoryState) -> Slots:
        """The tokens of each place in the order of time: features [B,M,P,C], and numbers as `info`, [B,M,P,6]."""
        places = self._places(state)
        ordered = places.slots.take(places.stats["order"][:, : self.cap])
        B = len(state.seen)
        return Slots(
            ordered.features[:, :, 0].unflatten(0, (B, -1)).transpose(1, 2),
            ordered.info.unflatten(0, (B, -1)).transpose(1, 2),
        )

    def _used(self, state: MemoryState) -> Tensor:
        """Which slots are in use, bool [B,M]."""
        return self._by_place(state).info[:, :, 0, 0] > 0

    def _with_own_seconds(self, read: Tokens, state: MemoryState, times: Tensor) -> Tokens:
        """Replaces sizes and frames of tokens by their own, for frames at these seconds, float64 [B,T]."""
        P = state.slots.features.shape[2]
        info = self._by_place(state).info[:, : read.N // P].flatten(1, 2)
        frame = frame_at(info[..., 1].cpu(), times.contiguous()).to(read.positions)
        sizes = (info[..., 0] * (state.H * state.W / P)).to(read.sizes)
        positions = torch.cat([frame[..., None], read.positions[..., 1:]], 2)
        return read.replace(sizes=sizes * read.mask, positions=positions * read.mask[..., None])
