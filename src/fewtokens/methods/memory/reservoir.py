"""A random sample of the frames of a stream."""

from __future__ import annotations

from typing import Any

from fewtokens.core.memory import Memory, MemoryState, Slots
from fewtokens.methods.ops.memory_rules import reservoir


class Reservoir(Memory):
    """Holds a uniform random sample of all frames.

    Algorithm R (Vitter 1985): frame i replaces a random slot with probability `cap` / (i + 1). The random numbers are a
    hash of seed and index of the frame, so that all chunks and batches give the same sample.

    Args:
        cap: number of frames. Default: 64.
        seed: random seed. Default: 0.
        on_jump: "error" (default), "shift" or "reset", what to do if time goes back; see `Memory`.
    """

    paper = "Vitter, Random sampling with a reservoir, ACM TOMS 1985"
    license = "none needed"
    cost = "at most one copy of a frame"

    def __init__(self, cap: int = 64, *, seed: int = 0, on_jump: str = "error") -> None:
        super().__init__()
        self.set_memory(cap, on_jump)
        self.seed = seed

    def write(self, frames: Slots, state: MemoryState, **cues: Any) -> None:
        reservoir(state, frames, self.seed)
