"""Token Turing Machine: a memory of tokens that reads and writes frame after frame."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fewtokens.core.grid import Grid
from fewtokens.core.method import Resampled, Resampler, load_weights
from fewtokens.core.plan import by_position
from fewtokens.core.shapes import by_shape
from fewtokens.core.tokens import Tokens
from fewtokens.methods.ops.per_frame import check_dim
from fewtokens.methods.ops.resample import (
    Block,
    Places,
    Summary,
    by_frame,
    check_counts,
    counts_of,
    features_of,
    resampled,
    seen_by_all,
)

_HIDDEN = 64


@dataclass(frozen=True)
class TuringState:
    """What is remembered between chunks; its size never grows.

    Attributes:
        memory: [B,m,C].
        moments: float32 [B,m,4], of the tokens that each slot holds: their share, and their share times t, y and x.
        frames: how many there were.
    """

    memory: Tensor
    moments: Tensor
    frames: int

    __repr__ = by_shape


class TokenTuring(Resampler):
    """A memory M of tokens, zero at first, goes over the frames x_t; `keep` tokens are read from it at the end.

    Token Turing Machines (arXiv 2211.09119) as the temporal encoder of BLIP-3-Video (arXiv 2410.16267).
    Each frame: z = S_r([M; x_t]) reads, o = Transformer(z) works, M <- S_m([M; x_t; o]) writes, with S_k the summary
    of TokenLearner 1.1 into k tokens (`resample.Summary`). The Transformer adds a learned place to each token that was
    read and ends with a LayerNorm, as the released code does. It is causal in time: a memory never depends on later
    frames, and `step` gives chunk by chunk what `forward` gives for the whole; a frame without tokens leaves the
    memory as it is. It differs from the paper: what tells memory, places and outputs apart is added only to what is
    scored, not to the tokens (it would pile up in the memory), and the places of a frame are a learned layer of sines.
    Against the released code GELU is exact and the epsilon of LayerNorms 1e-5 (its tanh form and 1e-6 there).

    Attribution: the summaries are linear in the tokens, so their weights are followed through all frames; the
    Transformer is taken to leave its tokens where they are. The tokens come in the order of their mean time. Frames
    long ago fade; those whose weight vanishes in float32 are shared by all tokens alike.

    Args:
        keep: tokens of the whole video, a count.
        dim: channels of the features.
        memory: tokens of the memory.
        read: tokens that are read and worked on at each frame.
        num_layers: blocks of the Transformer.
        heads: of its attention; the largest number up to this that divides `dim`.
        checkpoint: a safetensors file with trained parameters; None draws them.
    """

    learned = True
    paper = "Token Turing Machines, arXiv 2211.09119; BLIP-3-Video, arXiv 2410.16267"
    license = "written from the papers; reference code Apache-2.0"
    cost = "a frame of n: (memory+n)*(128*C + (read+memory)*(64+C)) + 12*num_layers*read*C*C MACs"

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
        self.take_budget(keep, units=("count",))
        check_counts(memory=memory, read=read, num_layers=num_layers, heads=heads)
        self.dim, self.memory, self.read = dim, memory, read
        self.num_layers, self.heads, self.checkpoint = num_layers, heads, checkpoint
        self.places = Places(dim)
        self.slots = nn.Parameter(0.5 * torch.randn(memory, dim))
        self.outputs = nn.Parameter(0.5 * torch.randn(read, dim))
        self.reader, self.writer = Summary(dim, read, _HIDDEN), Summary(dim, memory, _HIDDEN)
        self.order = nn.Parameter(0.02 * torch.randn(read, dim))
        self.blocks = nn.Sequential(*(Block(dim, heads) for _ in range(num_layers)))
        self.norm = nn.LayerNorm(dim)
        self.last = Summary(dim, keep, _HIDDEN)
        load_weights(self, checkpoint)

    @property
    def causal(self) -> bool:
        return True

    def advance(self, frame: Tokens, memory: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """One frame further, for those who use what the Transformer gives at each frame.

        Args:
            frame: tokens of one frame of each video.
            memory: [B,m,C] after the previous frame; None before the first one.

        Returns:
            The memory [B,m,C], and the output of this frame, [B,r,C].
        """
        x, where = features_of(frame, self.slots.dtype), self._where(frame)
        memory, out, *_ = self._step(x, where, frame.mask, self._empty(frame.B) if memory is None else memory)
        return memory, out

    def resample(self, tokens: Tokens, **cues: Any) -> Resampled:
        memory, held = self._through(
            tokens, self._empty(tokens.B), self.slots.new_zeros(tokens.B, self.memory, 0).float()
        )
        maps = self.last(memory + self.slots)
        attention = seen_by_all(maps.detach().float() @ held)
        return resampled(tokens, maps.to(memory.dtype) @ memory, attention, counts_of(tokens, self.keep))

    def step(self, tokens: Tokens, state: TuringState | None = None, **cues: Any) -> tuple[Tokens, TuringState]:
        """As `Method.step`: what is read after these frames, in constant memory.

        The features, their order and their positions are those of the whole video so far. Attribution, sizes and
        assignment are known of these frames alone, since a memory of constant size does not say which earlier token it
        holds; `join` returns what was read last, with earlier cells marked dropped.
        """
        if state is None:
            state = TuringState(self._empty(tokens.B), torch.zeros(tokens.B, self.memory, 4, device=tokens.device), 0)
        memory, held = self._through(tokens, state.memory, state.moments)
        maps = self.last(memory + self.slots)
        shares = maps.detach().float() @ held  # the moments of earlier tokens, then the tokens of these frames
        start = torch.tensor([state.frames, 0.0, 0.0], device=tokens.device)
        values = F.pad(tokens.positions + start, (1, 0), value=1.0) * tokens.mask[..., None]
        moments = shares[..., :4] + shares[..., 4:] @ values
        positions = moments[..., 1:] / moments[..., :1].clamp(min=1e-12) - start
        count = counts_of(tokens, self.keep)
        order = by_position(positions, torch.ones_like(positions[..., 0], dtype=torch.bool))[..., None]

        def sort(rows: Tensor) -> Tensor:
            return rows.gather(1, order.expand(-1, -1, rows.shape[2]))

        new = Resampled(None, sort(seen_by_all(shares[..., 4:])), count)
        features = sort(maps.to(memory.dtype) @ memory).to(tokens.features.dtype)
        read = tokens.apply(new.plan)
        # These frames may have no token at all.
        read = read.replace(features=features, positions=sort(positions), sizes=read.sizes.clamp(min=1e-6))
        after = held[..., :4] + held[..., 4:] @ values
        return read, TuringState(memory.detach(), after, state.frames + tokens.grid.T)

    def join(self, chunks: Sequence[Tokens]) -> Tokens:
        last = chunks[-1]
        frames = sum(chunk.grid.T for chunk in chunks[:-1])
        times = [chunk.grid.times for chunk in chunks]
        known = torch.cat([time for time in times if time is not None], -1) if None not in times else None
        grid = Grid(frames + last.grid.T, last.grid.H, last.grid.W, known)
        lost = last.assignment.new_full((last.B, grid.cells - last.grid.cells), -1)
        shift = torch.tensor([frames, 0.0, 0.0], device=last.device)
        return last.replace(
            grid=grid,
            positions=last.positions + shift,
            assignment=torch.cat([lost, last.assignment], 1),
            attribution=None if last.attribution is None else F.pad(last.attribution, (lost.shape[1], 0)),
        )

    def _empty(self, videos: int) -> Tensor:
        """The memory before the first frame, zeros [B,m,C]."""
        return self.slots.new_zeros(videos, *self.slots.shape)

    def _through(self, tokens: Tokens, memory: Tensor, held: Tensor) -> tuple[Tensor, Tensor]:
        """All frames of the tokens, one after the other.

        Args:
            tokens: [B,N,C].
            memory: [B,m,C] before the first of these frames.
            held: [B,m,k], linear in the earlier tokens; it fades as the memory does.

        Returns:
            The memory after the last frame, and `held` with the tokens behind it: how much of each the memory holds,
            float32 [B,m,k+N].
        """
        check_dim(self.name, tokens.C, self.dim)
        x, where = features_of(tokens, self.slots.dtype), self._where(tokens)
        index, real = by_frame(tokens)
        earlier = held.shape[2]
        held = F.pad(held, (0, tokens.N))
        for frame, here in zip(index.unbind(1), real.unbind(1), strict=True):
            rows = frame[..., None].expand(-1, -1, tokens.C)
            memory, _, reading, writing = self._step(x.gather(1, rows), where.gather(1, rows), here, memory)
            held = self._follow(held, reading.detach().float(), writing.detach().float(), frame + earlier, here)
        return memory, held

    def _where(self, tokens: Tokens) -> Tensor:
        """Rows and columns embedded; time is what the memory is for, and a stream has no end."""
        still = tokens.positions * torch.tensor([0.0, 1.0, 1.0], device=tokens.device)
        return self.places(tokens.replace(positions=still))

    def _step(self, x: Tensor, where: Tensor, real: Tensor, memory: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """New memory, output, and the maps [B,r,m+n] and [B,m,m+n+r] that read and wrote them."""
        marks = torch.cat([self.slots.expand_as(memory), where], 1)
        both = torch.cat([memory, x], 1)
        mask = torch.cat([real.new_ones(memory.shape[:2]), real], 1)
        reading = self.reader(both + marks, mask)
        out = self.norm(self.blocks(reading.to(x.dtype) @ both + self.order))
        marks = torch.cat([marks, self.outputs.expand_as(out)], 1)
        both, mask = torch.cat([both, out], 1), torch.cat([mask, real.new_ones(out.shape[:2])], 1)
        writing = self.writer(both + marks, mask)
        some = real.any(1)[:, None, None]
        return torch.where(some, writing.to(x.dtype) @ both, memory), out, reading, writing

    def _follow(self, held: Tensor, reading: Tensor, writing: Tensor, columns: Tensor, here: Tensor) -> Tensor:
        """How much of each token the memory holds after the frame whose tokens have these columns [B,n], [B,m,k+N]."""
        m, n = self.memory, columns.shape[1]

        def along(maps: Tensor) -> Tensor:
            own = maps[..., m : m + n] * here[:, None]
            return (maps[..., :m] @ held).scatter_add(2, columns[:, None].expand(-1, maps.shape[1], -1), own)

        # Shares of tokens are summed in float32 where the networks around run in half precision.
        with torch.autocast(held.device.type, enabled=False):
            after = along(writing) + writing[..., m + n :] @ along(reading)
        return torch.where(here.any(1)[:, None, None], after, held)
