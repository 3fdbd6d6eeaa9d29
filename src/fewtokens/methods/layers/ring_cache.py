"""Keys and values of the last columns only, after those of the first text."""

from __future__ import annotations

import torch

from fewtokens.core.kv_memory import TEXT, Columns, KVMemory, KVSlots, KVState, Run


class RingCache(KVMemory):
    """Holds the keys and values of the text before the video and of the last `cap` visual tokens.

    The baseline of memories in the cache, after StreamingLLM (arXiv 2309.17453), whose attention sinks are the text
    here. A token has read what was held when it arrived, so its keys and values also depend on tokens that were dropped
    since. A stream with at most `cap` tokens gives the logits of the unchanged model.

    Args:
        cap: number of visual tokens. Default: 4096.
        positions: "contiguous" (default) or "absolute", see `KVMemory`.
    """

    paper = "variant of Efficient Streaming Language Models with Attention Sinks, arXiv 2309.17453"
    license = "written from the paper"
    cost = "each token attends to at most `cap` others"

    def __init__(self, cap: int = 4096, *, positions: str = "contiguous") -> None:
        self.set_memory(cap, positions)

    def write(self, frame: Columns, state: KVState, run: Run) -> None:
        assert self.cap is not None
        slots = KVSlots.concatenate([state.slots, run(frame, state.slots)])
        text = int((slots.kind == TEXT).sum())
        oldest = max(text, len(slots) - self.cap)
        state.slots = slots.take(torch.cat([torch.arange(text), torch.arange(oldest, len(slots))]))
