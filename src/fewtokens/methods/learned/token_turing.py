"""Token Turing Machine: a memory of tokens, read and written frame by frame."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from fewtokens.core.grid import Grid
from fewtokens.core.method import Resampled, Resampler, load_weights
from fewtokens.core.plan import position_order, take_rows
from fewtokens.core.shapes import shape_repr
from fewtokens.core.tokens import Tokens
from fewtokens.methods.ops.per_frame import check_dim
from fewtokens.methods.ops.resample import (
    attribute_by_attention,
    constant_count,
    group_by_frame,
    masked_features,
    with_attention_floor,
)
from fewtokens.methods.ops.turing_machine import TuringMachine


@dataclass(frozen=True)
class TuringState:
    """State between chunks; its size is constant.

    Attributes:
        memory: [B,m,C].
        moments: float32 [B,m,4], for each slot of the memory: the total weight of its tokens, and that weight times
            their t, y and x.
        frames: number of frames so far.
    """

    memory: Tensor
    moments: Tensor
    frames: int

    __repr__ = shape_repr


class TokenTuring(TuringMachine, Resampler):
    """Updates a memory of tokens frame by frame and reads the output from it at the end; causal.

    Token Turing Machines (arXiv 2211.09119) as the temporal encoder of BLIP-3-Video (arXiv 2410.16267), see
    `TuringMachine`, where differences are stated. The memory never depends on later frames, and `step` returns chunk by
    chunk what `forward` returns for all frames; a frame without tokens leaves the memory unchanged. The memory
    `token_turing_memory` takes checkpoints of the same parameters.

    Attribution: each read and write is linear in the tokens, so their weights are followed through all frames, with the
    Transformer treated as the identity. Frames long ago decay; tokens whose weights vanish in float32 are attributed to
    all outputs equally. Outputs are sorted by their mean time.

    Args:
        keep: number of output tokens per video, at least 1. Default: 32.
        dim: channels of the features.
        memory: number of tokens in the memory.
        read: number of tokens read and processed at each frame.
        num_layers: number of blocks of the Transformer.
        heads: maximum number of its attention heads; the largest number up to this that divides `dim` is used.
        checkpoint: path of a safetensors file with trained parameters; None initializes them randomly.
    """

    learned = True
    paper = "Token Turing Machines, arXiv 2211.09119; BLIP-3-Video, arXiv 2410.16267"
    license = "written from the papers; reference code Apache-2.0"
    cost = "per frame of n tokens: (memory+n)*(128*C + (read+memory)*(64+C)) + 12*num_layers*read*C*C MACs"

    def __init__(
        self,
        keep: int = 32,
        *,
        dim: int = 384,
        memory: int = 64,
        read: int = 8,
        num_layers: int = 4,
        heads: int = 8,
        checkpoint: str | None = None,
    ) -> None:
        super().__init__()
        self.set_budget(keep, units=("count",))
        self.set_machine(dim=dim, memory=memory, read=read, outputs=keep, num_layers=num_layers, heads=heads)
        self.dim, self.memory, self.read = dim, memory, read
        self.num_layers, self.heads, self.checkpoint = num_layers, heads, checkpoint
        load_weights(self, checkpoint)

    @property
    def causal(self) -> bool:
        return True

    def advance(self, frame: Tokens, memory: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Processes one frame and returns the output of the Transformer, for models that use it at each frame.

        Args:
            frame: tokens of one frame of each video.
            memory: [B,m,C] after the previous frame; None before the first one.

        Returns:
            The memory [B,m,C] after the frame, and the output of the frame, [B,r,C].
        """
        x, position_embedding = masked_features(frame, self.slots.dtype), self._embed_positions(frame)
        memory, out, *_ = self.update(
            x, position_embedding, frame.mask, self.empty(frame.B) if memory is None else memory
        )
        return memory, out

    def resample(self, tokens: Tokens, **cues: Any) -> Resampled:
        memory, weights = self._process_frames(
            tokens, self.empty(tokens.B), self.slots.new_zeros(tokens.B, self.memory, 0).float()
        )
        features, maps = self.summarize(memory)
        attention = with_attention_floor(maps.detach().float() @ weights)
        return attribute_by_attention(tokens, features, attention, constant_count(tokens, self.keep))

    def step(self, tokens: Tokens, state: TuringState | None = None, **cues: Any) -> tuple[Tokens, TuringState]:
        """Returns the tokens read after these frames, in constant memory; see `Method.step`.

        Features, their order and their positions are those of all frames so far. Attribution, sizes and assignment
        cover these frames only, because a memory of constant size does not record which earlier tokens it holds;
        `join` returns the last read, with earlier cells marked as dropped.
        """
        if state is None:
            state = TuringState(self.empty(tokens.B), torch.zeros(tokens.B, self.memory, 4, device=tokens.device), 0)
        memory, weights = self._process_frames(tokens, state.memory, state.moments)
        features, maps = self.summarize(memory)
        read_weights = maps.detach().float() @ weights  # moments of earlier tokens, then tokens of these frames
        start = torch.tensor([state.frames, 0.0, 0.0], device=tokens.device)
        values = F.pad(tokens.positions + start, (1, 0), value=1.0) * tokens.mask[..., None]
        moments = read_weights[..., :4] + read_weights[..., 4:] @ values
        positions = moments[..., 1:] / moments[..., :1].clamp(min=1e-12) - start
        count = constant_count(tokens, self.keep)
        order = position_order(positions, torch.ones_like(positions[..., 0], dtype=torch.bool))
        new = Resampled(None, take_rows(with_attention_floor(read_weights[..., 4:]), order), count)
        features = take_rows(features, order).to(tokens.features.dtype)
        read = tokens.apply(new.plan)
        # These frames may have no tokens at all.
        read = read.replace(features=features, positions=take_rows(positions, order), sizes=read.sizes.clamp(min=1e-6))
        after = weights[..., :4] + weights[..., 4:] @ values
        return read, TuringState(memory.detach(), after, state.frames + tokens.grid.T)

    def join(self, chunks: Sequence[Tokens]) -> Tokens:
        last = chunks[-1]
        frames = sum(chunk.grid.T for chunk in chunks[:-1])
        times = [chunk.grid.times for chunk in chunks]
        joined = torch.cat([time for time in times if time is not None], -1) if None not in times else None
        grid = Grid(frames + last.grid.T, last.grid.H, last.grid.W, joined)
        dropped = last.assignment.new_full((last.B, grid.cells - last.grid.cells), -1)
        shift = torch.tensor([frames, 0.0, 0.0], device=last.device)
        return last.replace(
            grid=grid,
            positions=last.positions + shift,
            assignment=torch.cat([dropped, last.assignment], 1),
            attribution=None if last.attribution is None else F.pad(last.attribution, (dropped.shape[1], 0)),
        )

    def _process_frames(self, tokens: Tokens, memory: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
        """Processes all frames of the tokens in order.

        Args:
            tokens: [B,N,C].
            memory: [B,m,C] before the first of these frames.
            weights: [B,m,k], linear in the earlier tokens; they decay as the memory does.

        Returns:
            The memory after the last frame, and `weights` extended by those of each token in the memory, float32
            [B,m,k+N].
        """
        check_dim(self.name, tokens.C, self.dim)
        x, position_embedding = masked_features(tokens, self.slots.dtype), self._embed_positions(tokens)
        index, real = group_by_frame(tokens)
        earlier = weights.shape[2]
        weights = F.pad(weights, (0, tokens.N))
        for frame, valid in zip(index.unbind(1), real.unbind(1), strict=True):
            rows = frame[..., None].expand(-1, -1, tokens.C)
            memory, _, reading, writing = self.update(
                x.gather(1, rows), position_embedding.gather(1, rows), valid, memory
            )
            reading, writing = reading.detach().float(), writing.detach().float()
            weights = self._update_weights(weights, reading, writing, frame + earlier, valid)
        return memory, weights

    def _embed_positions(self, tokens: Tokens) -> Tensor:
        """Embeds rows and columns only: the memory represents time, and a stream has no end."""
        in_frame = tokens.positions * torch.tensor([0.0, 1.0, 1.0], device=tokens.device)
        return self.places(tokens.replace(positions=in_frame))

    def _update_weights(
        self, weights: Tensor, reading: Tensor, writing: Tensor, columns: Tensor, valid: Tensor
    ) -> Tensor:
        """Weights [B,m,k+N] of all tokens in the memory after a frame whose tokens have these columns [B,n]."""
        m, n = self.memory, columns.shape[1]

        def propagate(maps: Tensor) -> Tensor:
            own = maps[..., m : m + n] * valid[:, None]
            return (maps[..., :m] @ weights).scatter_add(2, columns[:, None].expand(-1, maps.shape[1], -1), own)

        # Weights are accumulated in float32 even if the networks run in half precision.
        with torch.autocast(weights.device.type, enabled=False):
            after = propagate(writing) + writing[..., m + n :] @ propagate(reading)
        return torch.where(valid.any(1)[:, None, None], after, weights)
