"""Video-XL-2: chunks of frames in host memory, of which a question reads the most relevant ones in full."""

from __future__ import annotations

import torch
from torch import Tensor

from fewtokens.core.kv_memory import RAW, STEP, SUMMARY, TEXT, Columns, KVMemory, KVSlots, KVState, Relevance, Run


class VideoXL2(KVMemory):
    """Frames attend to their chunk and the one before; a question reads few chunks in full, and means of the others.

    Video-XL-2 (arXiv 2506.19225). Prefill: a token attends to the text before the video, to the `previous` chunks
    before its own, and to what comes before it in its chunk. When a chunk is full, its keys and values move to host
    memory (dense), and means of `sparse` consecutive ones stay. A question first attends to these means of all chunks;
    the `dense` chunks with the most attention, the mean over question tokens, heads and layers, are read in full
    instead, as is a chunk that is not full yet.

    Variant: the paper puts a time stamp before every four frames, which is seen by and sees all chunks, and condenses
    these frames to one before the language model; here frames are as they arrive. Its code averages rotated keys, ranks
    chunks by scores of another run, and also reads the first and the last chunk in full. Held chunks grow with the
    video there; here the oldest is forgotten beyond `cap`. The paper trains the model for this.

    Args:
        dense: number of chunks that a question reads in full. Default: 4.
        chunk: frames of a chunk (tubelets in Qwen-VL). Default: 8.
        sparse: tokens per sparse slot; the last of a chunk may have fewer. Default: 12, as in the code.
        previous: number of earlier chunks to which a frame attends. Default: 1.
        cap: number of chunks that are held; None for all, as published. Default: 256.
        positions: "contiguous" (default) or "absolute", see `KVMemory`.
    """

    paper = "variant of Video-XL-2, arXiv 2506.19225"
    license = "written from the paper and the description of its code, which is Apache-2.0"
    cost = "each token attends to two chunks; a question attends to all sparse slots twice, and moves `dense` chunks"

    def __init__(
        self,
        dense: int = 4,
        *,
        chunk: int = 8,
        sparse: int = 12,
        previous: int = 1,
        cap: int | None = 256,
        positions: str = "contiguous",
    ) -> None:
        self.set_memory(cap, positions)
        for name, value, least in (
            ("dense", dense, 0),
            ("chunk", chunk, 1),
            ("sparse", sparse, 1),
            ("previous", previous, 0),
        ):
            if value < least:
                raise ValueError(f"{self.name}: {name} must be at least {least}, got {value}")
        self.dense, self.chunk, self.sparse, self.previous = dense, chunk, sparse, previous

    def write(self, frame: Columns, state: KVState, run: Run) -> None:
        step = int(frame.info[0, STEP])
        current = step // self.chunk
        self._close(state, current)  # a chunk whose last frames have no tokens
        slots = state.slots
        near = (slots.kind == TEXT) | ((slots.kind == RAW) & (self._chunks(slots) >= current - self.previous))
        state.slots = KVSlots.concatenate([slots, run(frame, slots.take(near))])
        self._close(state, (step + 1) // self.chunk)

    def read(self, state: KVState, relevance: Relevance) -> KVSlots:
        slots, closed = state.slots, int(state.stats.get("closed", 0))
        sparse = slots.take((slots.kind != RAW) | (self._chunks(slots) >= closed))
        if not self.dense or not state.host:
            return sparse
        chunk, kind = self._chunks(sparse), sparse.kind
        numbers = [int(self._chunks(part)[0]) for part in state.host]
        chosen = list(range(len(numbers)))
        if self.dense < len(numbers):
            rates = relevance(sparse)
            means = [rates[(kind == SUMMARY) & (chunk == number)].mean() for number in numbers]
            chosen = top_chunks(torch.stack(means), self.dense)
        parts = [sparse.take(kind == TEXT)]
        for index, number in enumerate(numbers):
            own = (kind == SUMMARY) & (chunk == number)
            parts.append(state.host[index].to(slots.keys[0].device) if index in chosen else sparse.take(own))
        return KVSlots.concatenate([*parts, sparse.take(kind == RAW)])

    def _chunks(self, slots: KVSlots) -> Tensor:
        """The number of the chunk of each slot, int64 [n]."""
        return slots.info[:, STEP].long() // self.chunk

    def _close(self, state: KVState, current: int) -> None:
        """Moves the chunks before number `current` to the host."""
        slots, chunk, raw = state.slots, self._chunks(state.slots), state.slots.kind == RAW
        closed = int(state.stats.get("closed", 0))
        full = chunk[raw & (chunk >= closed) & (chunk < current)].unique().tolist()
        state.stats["closed"] = torch.tensor(max(current, closed))
        sparse = []
        for number in full:
            dense = slots.take(raw & (chunk == number))
            state.host = [*state.host, dense.to("cpu")]
            sparse.append(dense.pool(self.sparse))
        if not full:
            return
        state.host = state.host if self.cap is None else state.host[-self.cap :]
        oldest = int(self._chunks(state.host[0])[0])
        held = (slots.kind == TEXT) | ((slots.kind == SUMMARY) & (chunk >= oldest))
        recent = raw & (chunk >= current - self.previous)
        kept = [part for part in sparse if int(self._chunks(part)[0]) >= oldest]
        state.slots = KVSlots.concatenate([slots.take(held), *kept, slots.take(recent)])


def top_chunks(scores: Tensor, count: int) -> list[int]:
    """The indices of the `count` highest scores [K], in order; ties go to the first."""
    return sorted(scores.argsort(descending=True, stable=True)[:count].tolist())
