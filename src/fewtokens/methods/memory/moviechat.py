"""MovieChat: a short buffer of frames, consolidated into a long memory."""

from __future__ import annotations

from typing import Any

from fewtokens.core.memory import Memory, MemoryState, Slots
from fewtokens.methods.ops.memory_rules import adjacency_stats, flat_key, merge_adjacent, merge_down

_VARIANTS = ("weighted", "paper", "code")


class MovieChat(Memory):
    """Merges each full buffer of `short` frames to `slots` slots and appends these to a long memory of `cap` slots.

    MovieChat (arXiv 2307.16449). In the buffer, the neighbors with the highest cosine over all tokens are averaged, one
    pair at a time. Beyond `cap`, the most similar neighbors of the long memory are merged; the published code never
    enforces its limit of 64, so its memory grows. The Q-Former that follows in the paper is not part of this method.

    Variants:
        "weighted": averages are weighted by the number of frames (ours).
        "paper": both slots of a pair count equally, as in the paper.
        "code": as "paper", but in the buffer the least similar neighbors are merged. The published code does this,
            because it takes the highest value of a cosine distance.

    With `short=1, slots=1` every frame is appended to the long memory, and only its neighbors are merged.

    Args:
        cap: number of slots of the long memory. Default: 64.
        short: number of frames of the buffer, which `read` returns unchanged. Default: 18.
        slots: number of slots that a full buffer is merged to. Default: 2.
        variant: "weighted" (default), "paper" or "code".
        on_jump: "error" (default), "shift" or "reset", what to do if time goes back; see `Memory`.
    """

    spare = 1
    paper = "MovieChat, arXiv 2307.16449"
    license = "written from the paper; reference code is a non-commercial preview"
    cost = (
        "per frame about S*P*C MACs for a buffer of S frames of P tokens, and M operations for the pairs of the memory"
    )

    def __init__(
        self, cap: int = 64, *, short: int = 18, slots: int = 2, variant: str = "weighted", on_jump: str = "error"
    ) -> None:
        super().__init__()
        self.set_memory(cap, on_jump, recent=short)
        if not 1 <= slots <= short:
            raise ValueError(f"{self.name}: slots must be in 1..short={short}, got {slots}")
        if variant not in _VARIANTS:
            raise ValueError(f"{self.name}: variant must be 'weighted', 'paper' or 'code', got {variant!r}")
        self.short, self.slots, self.variant = short, slots, variant

    def new_stats(self, B: int, P: int, C: int, device: Any) -> dict[str, Any]:
        return adjacency_stats(B, self.cap, device)

    def write(self, frames: Slots, state: MemoryState, **cues: Any) -> None:
        weighted = self.variant == "weighted"
        merged = merge_down(frames, self.slots, weighted=weighted, least=self.variant == "code")
        written = state.frames // self.short * self.slots
        for index in range(self.slots):
            slot = merged.span(index, index + 1)
            merge_adjacent(state, slot, written + index, key=flat_key, weighted=weighted)
