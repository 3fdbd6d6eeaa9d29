"""VidCompress: clips compressed by pooled attention that also sees a cache of earlier clips."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from fewtokens.core.memory import Memory, MemoryState, Slots
from fewtokens.core.method import load_weights
from fewtokens.methods.ops.frame_pool import pool_frame, pool_shape
from fewtokens.methods.ops.memory_rules import adjacency_stats, average, check_question, halve, merge_adjacent
from fewtokens.methods.ops.per_frame import check_dim
from fewtokens.methods.ops.resample import IdentityLayer, check_counts

# Earlier clips that the frames of a clip attend to.
_HISTORY = 16


class VidCompress(Memory):
    """Compresses the frames of each clip to `tokens` tokens, with attention to the clip and to earlier clips.

    VidCompress (arXiv 2410.11417). In two stages of pooled attention, the tokens of each frame are averaged to
    4 * `tokens` and then to `tokens`; these attend to all tokens of the clip before the stage and to a cache of 16
    earlier clips. `read` with the cue "text", [B,L,dim], adapts the tokens of each slot to the question: they attend to
    each other and the text, then to the original tokens of the slot. The state does not depend on the question.

    Differences from the paper (no code was found, and the paper leaves much open): the cache holds the average of the
    compressed frames of a clip, from which each stage computes keys and values, of every clip, then of every 2nd, 4th,
    ...; gradients do not pass through it. The queries of the Q-Former are the compressed tokens instead of learned
    ones, since frames are no longer held when the question comes. Beyond `cap`, the most similar neighbors in time are
    averaged. Layers start as the identity, so that without training tokens are averages and a question has no effect.

    Args:
        cap: number of slots, each a frame. Default: 64.
        dim: channels of the features and of the text.
        clip: number of frames of a clip. Default: 8.
        tokens: number of tokens of a compressed frame, if it has as many. Default: 16.
        checkpoint: path of a safetensors file with trained parameters; None initializes them randomly.
        on_jump: "error" (default), "shift" or "reset", what to do if time goes back; see `Memory`.
    """

    learned = True
    optional_cues = ("text",)
    spare = 1
    paper = "VidCompress, arXiv 2410.11417"
    license = "written from the paper; no code was found"
    cost = "per clip of n frames of P tokens: attention of 4 * n * `tokens` queries to n*P + 16 * `tokens` tokens"

    def __init__(
        self,
        cap: int = 64,
        *,
        dim: int = 384,
        clip: int = 8,
        tokens: int = 16,
        checkpoint: str | None = None,
        on_jump: str = "error",
    ) -> None:
        super().__init__()
        self.set_memory(cap, on_jump, recent=clip)
        check_counts(tokens=tokens)
        self.dim, self.clip, self.tokens, self.checkpoint = dim, clip, tokens, checkpoint
        self.stages = nn.ModuleList(IdentityLayer(dim) for _ in range(2))
        self.question, self.look = IdentityLayer(dim), IdentityLayer(dim)
        load_weights(self, checkpoint)

    def slot_tokens(self, P: int) -> int:
        return min(self.tokens, P)

    def new_stats(self, B: int, P: int, C: int, device: torch.device) -> dict[str, Tensor]:
        history = Slots.empty((B, _HISTORY, self.slot_tokens(P), C), torch.zeros(0, device=device))
        return adjacency_stats(B, self.cap, device) | {"history": history.features, "history_info": history.info}

    def write(self, frames: Slots, state: MemoryState, **cues: Any) -> None:
        clip = self._compress(frames, state)
        for index in range(self.clip):
            merge_adjacent(state, clip.span(index, index + 1), state.frames + index)
        mean = average(clip)
        history = replace(state, slots=self._history(state), seen=state.seen // self.clip)
        halve(history, Slots(mean.features.detach(), mean.info))
        state.stats["history"], state.stats["history_info"] = history.slots.features, history.slots.info

    def held(self, state: MemoryState, **cues: Any) -> Slots:
        slots = state.slots
        if state.recent is not None:
            slots = Slots.concatenate([slots, self._compress(state.recent, state)])
        text = cues.get("text")
        return slots if text is None else self._adapt(slots, text)

    def _history(self, state: MemoryState) -> Slots:
        return Slots(state.stats["history"], state.stats["history_info"])

    def _compress(self, frames: Slots, state: MemoryState) -> Slots:
        """Frames [B,n,P,C] as slots [B,n,S,C]."""
        n, P, C = frames.features.shape[1:]
        check_dim(self.name, C, self.dim)
        history, dtype = self._history(state), next(self.parameters()).dtype
        S = self.slot_tokens(P)
        cache, cache_mask = history.features.flatten(1, 2).to(dtype), history.mask.repeat_interleave(S, 1)
        x = frames.features.to(dtype)
        (H, W), place = (state.H, state.W), frames.place
        for stage, count in zip(self.stages, (min(4 * S, P), S), strict=True):
            context = torch.cat([cache, x.flatten(1, 2)], 1)
            mask = torch.cat([cache_mask, frames.mask.repeat_interleave(x.shape[2], 1)], 1)
            before = x.shape[2]
            x = stage(pool_frame(x, H, W, count).flatten(1, 2), context, mask).unflatten(1, (n, count))
            place = pool_frame(place, H, W, count)
            H, W = pool_shape(before, H, W, count)
        return Slots.create(x.to(state.slots.features.dtype), frames.mass, frames.seconds, place)

    def _adapt(self, slots: Slots, text: Tensor) -> Slots:
        """Slots whose tokens are adapted to the question."""
        B, M = slots.features.shape[:2]
        check_question(self.name, text, B, self.dim)
        dtype = next(self.parameters()).dtype
        x = slots.features.flatten(0, 1).to(dtype)
        context = torch.cat([x, text.to(dtype).repeat_interleave(M, 0)], 1)
        adapted = self.look(self.question(x, context), x)
        return Slots(adapted.unflatten(0, (B, M)).to(slots.features.dtype), slots.info)
