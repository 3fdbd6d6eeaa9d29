"""A Token Turing Machine as a memory of a stream."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from fewtokens.core.grid import Grid
from fewtokens.core.memory import Memory, MemoryState, Slots
from fewtokens.core.method import load_weights
from fewtokens.methods.ops.memory_rules import merge
from fewtokens.methods.ops.per_frame import check_dim
from fewtokens.methods.ops.resample import check_counts
from fewtokens.methods.ops.turing_machine import TuringMachine


class TokenTuringMemory(TuringMachine, Memory):
    """Holds one slot, the memory of a Token Turing Machine that every frame is read into, and returns a summary of it.

    The same network as the method `token_turing`, and the same parameters: a checkpoint of one fits the other, and
    `read` returns its features. There is one slot, which stands for all frames. Its tokens are new features, not
    averages of frames, so that the memory is useless without training. The place of a token follows the weights of the
    tokens read and written, with the Transformer treated as the identity; a place that no weight reaches is the center.

    Args:
        memory: number of tokens of the memory. Default: 64.
        tokens: number of tokens that `read` returns. Default: 32.
        dim: channels of the features.
        processed: number of tokens read and processed at each frame. Default: 8.
        num_layers: number of blocks of the Transformer.
        heads: maximum number of its attention heads; the largest number up to this that divides `dim` is used.
        checkpoint: path of a safetensors file with trained parameters; None initializes them randomly.
        on_jump: "error" (default), "shift" or "reset", what to do if time goes back; see `Memory`.
    """

    learned = True
    paper = "Token Turing Machines, arXiv 2211.09119; BLIP-3-Video, arXiv 2410.16267"
    license = "written from the papers; reference code Apache-2.0"
    cost = "per frame of P tokens: (memory+P)*(128*C + (processed+memory)*(64+C)) + 12*num_layers*processed*C*C MACs"

    def __init__(
        self,
        memory: int = 64,
        *,
        tokens: int = 32,
        dim: int = 384,
        processed: int = 8,
        num_layers: int = 4,
        heads: int = 8,
        checkpoint: str | None = None,
        on_jump: str = "error",
    ) -> None:
        super().__init__()
        self.set_memory(1, on_jump)
        check_counts(memory=memory, tokens=tokens, processed=processed)
        self.set_machine(dim=dim, memory=memory, read=processed, outputs=tokens, num_layers=num_layers, heads=heads)
        self.memory, self.tokens, self.dim, self.processed = memory, tokens, dim, processed
        self.num_layers, self.heads, self.checkpoint = num_layers, heads, checkpoint
        load_weights(self, checkpoint)

    def slot_tokens(self, P: int) -> int:
        return self.memory

    def min_count(self, grid: Grid) -> int:
        return self.tokens

    def new_stats(self, B: int, P: int, C: int, device: torch.device) -> dict[str, Tensor]:
        # Of each token: the sum of the weights of the tokens of all frames, and of these times their y and x.
        return {"moments": torch.zeros(B, self.memory, 3, device=device)}

    def write(self, frames: Slots, state: MemoryState, **cues: Any) -> None:
        x = frames.features[:, 0].to(self.slots.dtype)
        check_dim(self.name, x.shape[2], self.dim)
        place = frames.place[:, 0].float()
        positions = F.pad(place * place.new_tensor([state.H, state.W]) - 0.5, (1, 0))
        real = torch.ones(x.shape[:2], dtype=torch.bool, device=x.device)
        before = state.slots.features[:, 0].to(x.dtype)
        embedded = self.places.embed(positions, state.H, state.W)
        memory, _, reading, writing = self.update(x, embedded, real, before)
        known = torch.cat([state.stats["moments"], F.pad(place, (1, 0), value=1.0)], 1)
        known = torch.cat([known, reading.detach() @ known], 1)
        state.stats["moments"] = writing.detach() @ known
        info = frames.info[..., :4]
        if state.frames:
            info = merge(*(Slots(part.features[:, :, :0], part.info[..., :4]) for part in (state.slots, frames))).info
        place = _places(state.stats["moments"])[:, None]
        features = memory[:, None].to(state.slots.features.dtype)
        state.slots.put_span(0, Slots.create(features, info[..., 0], info[..., 1:], place))

    def held(self, state: MemoryState, **cues: Any) -> Slots:
        features, maps = self.summarize(state.slots.features[:, 0].to(self.slots.dtype))
        place = _places(maps.detach() @ state.stats["moments"])
        info = state.slots.info
        features = features[:, None].to(state.slots.features.dtype)
        return Slots.create(features, info[..., 0], info[..., 1:4], place[:, None])


def _places(moments: Tensor) -> Tensor:
    """The mean places [B,n,2] of moments [B,n,3]."""
    weight = moments[..., :1]
    return torch.where(weight > 1e-12, moments[..., 1:] / weight.clamp(min=1e-12), 0.5)
