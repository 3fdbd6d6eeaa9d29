"""The last frames of a stream."""

from __future__ import annotations

from typing import Any

from fewtokens.core.memory import Memory, MemoryState, Slots


class Ring(Memory):
    """Holds the last `cap` frames.

    Args:
        cap: number of frames. Default: 64.
        on_jump: "error" (default), "shift" or "reset", what to do if time goes back; see `Memory`.
    """

    paper = "none"
    license = "none needed"
    cost = "one copy of a frame"

    def __init__(self, cap: int = 64, *, on_jump: str = "error") -> None:
        super().__init__()
        self.set_memory(cap, on_jump)

    def write(self, frames: Slots, state: MemoryState, **cues: Any) -> None:
        state.slots.put_span(state.frames % self.cap, frames)
