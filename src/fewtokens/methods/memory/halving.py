"""Every frame of a stream, then every 2nd, every 4th, ..."""

from __future__ import annotations

from typing import Any

from fewtokens.core.memory import Memory, MemoryState, Slots
from fewtokens.methods.ops.memory_rules import halve


class Halving(Memory):
    """Holds frames at equal distances: every 2^k-th frame from the first on, for the smallest k for which they fit.

    Between `cap` / 2 and `cap` frames are held once the stream is longer than `cap`.

    Args:
        cap: maximum number of frames. Default: 64.
        on_jump: "error" (default), "shift" or "reset", what to do if time goes back; see `Memory`.
    """

    paper = "none"
    license = "none needed"
    cost = "one copy of a frame; of half the memory whenever the stream is twice as long"

    def __init__(self, cap: int = 64, *, on_jump: str = "error") -> None:
        super().__init__()
        self.set_memory(cap, on_jump)

    def write(self, frames: Slots, state: MemoryState, **cues: Any) -> None:
        halve(state, frames)
