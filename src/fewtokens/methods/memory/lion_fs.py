"""LION-FS: ten tokens of a frame, mixed from the features of two encoders."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from fewtokens.core.memory import Memory, MemoryState, Slots
from fewtokens.core.method import load_weights
from fewtokens.methods.ops.frame_pool import pool_frame
from fewtokens.methods.ops.memory_rules import adjacency_stats, merge_adjacent

# The mean of a frame, and a grid of 3 x 3.
_GRID = 9


class LionFS(Memory):
    """Reduces each frame to its mean and 3 x 3 pooled tokens, mixed from two encoders, and holds `cap` frames.

    The fast path of LION-FS (arXiv 2503.03663). With `sets=2`, the features of two encoders, such as one for images and
    one for egocentric video, on the same grid and both projected to `dim` channels, are concatenated in the channels:
    `tokens.replace(features=torch.cat([first.features, second.features], 2))`. A router of two layers reads the mean
    token of the first encoder and gives two logits for each of the ten tokens; their softmax weighs the two encoders,
    so that the second adds no tokens. With `sets=1`, for the one encoder that a pipeline has, nothing is mixed: the ten
    tokens are averages, without parameters.

    Differences from the published code: the last layer of the router starts at zero, so that without training both
    encoders count equally; beyond `cap`, the most similar neighbors in time are averaged (theirs grow without bound). A
    frame with fewer than nine tokens keeps all of them besides their mean. The dropping of tokens inside the language
    model is the method `videollm_mod`.

    Args:
        cap: number of slots, each a frame. Default: 64.
        dim: channels of the features of one encoder.
        sets: number of encoders, 1 (default) or 2.
        checkpoint: path of a safetensors file with trained parameters; None initializes them randomly.
        on_jump: "error" (default), "shift" or "reset", what to do if time goes back; see `Memory`.
    """

    learned = True
    spare = 1
    paper = "LION-FS, arXiv 2503.03663"
    license = "written from the paper; reference code MIT"
    cost = "about sets*P*C additions and C*C + 20*C MACs per frame of P tokens, and M operations for the pairs"

    def __init__(
        self,
        cap: int = 64,
        *,
        dim: int = 384,
        sets: int = 1,
        checkpoint: str | None = None,
        on_jump: str = "error",
    ) -> None:
        super().__init__()
        self.set_memory(cap, on_jump)
        if sets not in (1, 2):
            raise ValueError(f"{self.name}: sets must be 1 or 2, got {sets}")
        self.dim, self.sets, self.checkpoint = dim, sets, checkpoint
        if sets == 2:
            self.router = nn.Sequential(nn.Linear(dim, dim), nn.GELU(), nn.Linear(dim, 2 * (1 + _GRID)))
            for parameter in self.router[2].parameters():
                nn.init.zeros_(parameter)
        load_weights(self, checkpoint)

    @property
    def untrained(self) -> bool:
        return self.sets == 2 and super().untrained

    def slot_tokens(self, P: int) -> int:
        return 1 + min(_GRID, P)

    def slot_channels(self, C: int) -> int:
        return C // self.sets

    def new_stats(self, B: int, P: int, C: int, device: torch.device) -> dict[str, Tensor]:
        return adjacency_stats(B, self.cap, device)

    def write(self, frames: Slots, state: MemoryState, **cues: Any) -> None:
        if self.sets == 2 and (C := frames.features.shape[3]) != 2 * self.dim:
            raise ValueError(f"{self.name} was built for 2 encoders of {self.dim} channels, but these tokens have {C}")
        tokens = self._pool(frames.features.float(), state)
        if self.sets == 2:
            first, second = tokens.split(self.dim, 3)
            logits = self.router(first[:, :, 0].to(next(self.router.parameters()).dtype)).float()
            weights = logits.unflatten(2, (-1, 2))[:, :, : tokens.shape[2]].softmax(3)
            tokens = first * weights[..., :1] + second * weights[..., 1:]
        slot = Slots.create(
            tokens.to(frames.features.dtype), frames.mass, frames.seconds, self._pool(frames.place, state)
        )
        merge_adjacent(state, slot, state.frames)

    def _pool(self, x: Tensor, state: MemoryState) -> Tensor:
        """The mean of frames [B,1,P,D], and their tokens pooled to the grid: [B,1,1+g,D]."""
        grid = pool_frame(x, state.H, state.W, min(_GRID, x.shape[2]))
        return torch.cat([x.mean(2, keepdim=True), grid], 2)
