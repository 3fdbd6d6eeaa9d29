"""TDC: the first frame of a chunk unchanged, and a few tokens for each of the others, relative to the first."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from fewtokens.core.grid import Grid
from fewtokens.core.memory import Memory, MemoryState, Slots
from fewtokens.core.method import load_weights
from fewtokens.core.plan import Plan
from fewtokens.core.tokens import Tokens
from fewtokens.methods.ops.frame_pool import pool_frame
from fewtokens.methods.ops.memory_rules import adjacency_stats, average, drop_adjacent, flat_key, mean_key
from fewtokens.methods.ops.per_frame import check_dim
from fewtokens.methods.ops.resample import QueryLayer, check_counts
from fewtokens.methods.ops.scene_tilling import SceneStream

# The place of the tokens that a chunk with fewer frames does not have: outside of the frame.
_NOWHERE = -9.0


class TDC(Memory):
    """Divides the stream at cuts into chunks, and holds all tokens of the first frame of each and few of the others.

    TDC-Video (arXiv 2504.10443). A chunk has at most `chunk` frames and does not extend over a cut. The tokens of its
    first frame, the static ones, are unchanged. Each other frame becomes `tokens` dynamic tokens by a Q-Former, whose
    queries are the static tokens, averaged to this number. A slot is a chunk, so that a chunk of n frames of P tokens
    has P + (n-1) * `tokens` tokens; beyond `cap`, the earlier of the most similar neighbors in time is dropped.

    Differences from the published code: cuts are those of SceneTilling on the stream so far, of the cosine of all
    tokens of neighboring frames, so that a video without a change has none; the published number of cuts is constant,
    which requires the full video. A cut is known only when the similarity rises again, and is ignored if its chunk is
    full by then. Short videos are compressed as long ones are (theirs are not up to 25 frames), and long ones are not
    thinned to 224 frames. The output is added to the average of the frame and not normalized to length 1, and there are
    no position embeddings (theirs contain an error). Question and audio are left out: when frames pass, the question is
    unknown. Without training, dynamic tokens are the averages.

    Args:
        cap: number of slots, each a chunk. Default: 64.
        dim: channels of the features.
        chunk: maximum number of frames of a chunk. Default: 8.
        tokens: number of dynamic tokens of a frame, if it has as many. Default: 16.
        num_layers: number of layers of the Q-Former. Default: 2.
        warm_up: number of pairs of frames before the first cut, see `SceneStream`. Default: 16.
        checkpoint: path of a safetensors file with trained parameters; None initializes them randomly.
        on_jump: "error" (default), "shift" or "reset", what to do if time goes back; see `Memory`.
    """

    learned = True
    separate = True
    spare = 1
    paper = "TDC-Video, arXiv 2504.10443"
    license = "written from the paper; reference code has no license file, only Apache-2.0 headers"
    cost = "per frame of P tokens: num_layers Q-Former layers of `tokens` queries over P tokens"

    def __init__(
        self,
        cap: int = 64,
        *,
        dim: int = 384,
        chunk: int = 8,
        tokens: int = 16,
        num_layers: int = 2,
        warm_up: int = 16,
        checkpoint: str | None = None,
        on_jump: str = "error",
    ) -> None:
        super().__init__()
        self.set_memory(cap, on_jump)
        check_counts(chunk=chunk, tokens=tokens, num_layers=num_layers, warm_up=warm_up)
        self.dim, self.chunk, self.tokens, self.num_layers = dim, chunk, tokens, num_layers
        self.warm_up, self.checkpoint = warm_up, checkpoint
        self.layers = nn.ModuleList(QueryLayer(dim, 8) for _ in range(num_layers))
        self.out = nn.Linear(dim, dim)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)
        load_weights(self, checkpoint)

    def slot_tokens(self, P: int) -> int:
        return P + (self.chunk - 1) * min(self.tokens, P)

    def min_count(self, grid: Grid) -> int:
        return grid.cells_per_frame

    def new_stats(self, B: int, P: int, C: int, device: torch.device) -> dict[str, Tensor]:
        chunk = Slots.empty((B, self.chunk, P, C), torch.zeros(0, device=device))
        return adjacency_stats(B, self.cap, device) | {
            # The state of SceneTilling, the first frame of the chunk, number of slots written.
            "numbers": torch.zeros(B, SceneStream.SIZE + 2, dtype=torch.float64, device=device),
            "chunk": chunk.features,
            "chunk_info": chunk.info,
        }

    def write(self, frames: Slots, state: MemoryState, **cues: Any) -> None:
        check_dim(self.name, frames.features.shape[3], self.dim)
        *tilling, start, written = state.stats["numbers"][0].tolist()
        scenes, chunk = SceneStream(warm_up=self.warm_up, numbers=tilling), self._chunk(state)
        held = state.frames - int(start)
        if held:
            pair = Slots.concatenate([chunk.span(held - 1, held), frames]).features.detach()
            cut = scenes.push(float(flat_key(pair)[0].prod(0).sum()))
            ends = held if held == self.chunk else 0
            if cut is not None and cut >= start:
                ends = cut + 1 - int(start)
            if ends:
                slot = self._compress(chunk.span(0, ends), state)
                drop_adjacent(state, slot, int(written), key=mean_key)
                rest = chunk.take(torch.arange(ends, held, device=chunk.features.device)[None])
                chunk.put_span(0, rest)
                held, start, written = held - ends, start + ends, written + 1
                chunk.clear(held)
        chunk.put_span(held, frames)
        state.stats["chunk"], state.stats["chunk_info"] = chunk.features, chunk.info
        numbers = torch.tensor([[*scenes.numbers, start, written]], dtype=torch.float64)
        state.stats["numbers"] = numbers.to(frames.features.device)

    def held(self, state: MemoryState, **cues: Any) -> Slots:
        return Slots.concatenate([state.slots, self._compress(self._chunk(state), state)])

    def read(self, state: MemoryState, **cues: Any) -> Tokens:
        return _drop_missing(super().read(state, **cues))

    def forward(self, tokens: Tokens, **cues: Any) -> Tokens:
        return _drop_missing(super().forward(tokens, **cues))

    def _chunk(self, state: MemoryState) -> Slots:
        return Slots(state.stats["chunk"], state.stats["chunk_info"])

    def _compress(self, chunk: Slots, state: MemoryState) -> Slots:
        """The slot [B,1,M,C] of a chunk [B,n,P,C], whose used frames are the first."""
        B, n, P, C = chunk.features.shape
        count, M = min(self.tokens, P), self.slot_tokens(P)
        # A copy for the backward pass: later frames change the chunk in place.
        frames = chunk.features.to(self.out.weight.dtype, copy=True)
        static, others = frames[:, :1], frames[:, 1:].flatten(0, 1)
        queries = pool_frame(static, state.H, state.W, count).expand(-1, n - 1, -1, -1).flatten(0, 1)
        mask = torch.ones(others.shape[:2], dtype=torch.bool, device=others.device)
        for layer in self.layers:
            queries, _ = layer(queries, others, mask)
        dynamic = (pool_frame(others, state.H, state.W, count) + self.out(queries)).reshape(B, 1, -1, C)
        place = pool_frame(chunk.place[:, 1:], state.H, state.W, count).reshape(B, 1, -1, 2)

        missing = M - P - dynamic.shape[2]
        used = nn.functional.pad(chunk.mask[:, None, 1:].repeat_interleave(count, 2), (P, missing), value=False)
        used[:, :, :P] = True
        features = nn.functional.pad(torch.cat([static, dynamic], 2), (0, 0, 0, missing))
        place = nn.functional.pad(torch.cat([chunk.place[:, :1], place], 2), (0, 0, 0, missing))
        numbers = average(replace(chunk, features=frames[..., :0]))
        return Slots.create(
            features.masked_fill(~used[..., None], 0).to(state.slots.features.dtype),
            numbers.mass,
            numbers.seconds,
            place.masked_fill(~used[..., None], _NOWHERE),
        )


def _drop_missing(read: Tokens) -> Tokens:
    """Drops the tokens that a chunk with fewer frames does not have; the others of this slot share its cells."""
    slots = max(map(len, read.meta["spans"]))
    used = read.mask & (read.positions[..., 1] > -1)
    share = read.sizes.unflatten(1, (slots, -1)).sum(2) / used.unflatten(1, (slots, -1)).sum(2).clamp(min=1)
    sizes = share.repeat_interleave(read.N // slots, 1) * read.mask
    return read.replace(sizes=sizes).apply(Plan.keep(used))
