"""VideoScan: one carrier token per frame, and the most redundant carriers are dropped."""

from __future__ import annotations

from typing import Any

from fewtokens.core.memory import Memory, MemoryState, Slots
from fewtokens.methods.ops.memory_rules import adjacency_stats, drop_adjacent, merge_adjacent

_RULES = ("drop", "merge")


class VideoScan(Memory):
    """Reduces each frame to its mean token, the carrier, and holds `cap` carriers.

    VideoScan (arXiv 2503.09387). Beyond `cap`, the earlier of the two most similar neighbors in time is dropped; or
    they are averaged, weighted by frames (rule "merge", ours), so that a carrier also knows how long its scene lasts.
    In the paper a language model processes a frame and its carrier and only the keys and values of the carrier stay in
    its cache; this method has the same carriers and the same rule before the language model, without training. The
    published code tests for its limit after appending, so a limit of 64 holds 63: `cap` is the number that is held.

    Args:
        cap: number of carriers. Default: 63.
        rule: "drop" (default) or "merge".
        on_jump: "error" (default), "shift" or "reset", what to do if time goes back; see `Memory`.
    """

    spare = 1
    paper = "VideoScan, arXiv 2503.09387"
    license = "written from the paper; reference code says Apache-2.0 in its README, without a file"
    cost = "P*C additions for a frame of P tokens, and M operations for the pairs of the memory"

    def __init__(self, cap: int = 63, *, rule: str = "drop", on_jump: str = "error") -> None:
        super().__init__()
        self.set_memory(cap, on_jump)
        if rule not in _RULES:
            raise ValueError(f"{self.name}: rule must be 'drop' or 'merge', got {rule!r}")
        self.rule = rule

    def slot_tokens(self, P: int) -> int:
        return 1

    def new_stats(self, B: int, P: int, C: int, device: Any) -> dict[str, Any]:
        return adjacency_stats(B, self.cap, device)

    def write(self, frames: Slots, state: MemoryState, **cues: Any) -> None:
        mean = frames.features.float().mean(2, keepdim=True).to(frames.features.dtype)
        carrier = Slots.create(mean, frames.mass, frames.seconds, frames.place.mean(2, keepdim=True))
        (drop_adjacent if self.rule == "drop" else merge_adjacent)(state, carrier, state.frames)
