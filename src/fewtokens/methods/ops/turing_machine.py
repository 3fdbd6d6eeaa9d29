"""The network of a Token Turing Machine, for methods that differ in what they return: `token_turing` and a memory."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn

from fewtokens.methods.ops.resample import Block, PositionEmbedding, TokenSummary, check_counts

_HIDDEN = 64


class TuringMachine(nn.Module):
    """A part of a method (a mixin), which reads, processes and writes a memory of m tokens frame by frame.

    Token Turing Machines (arXiv 2211.09119) as the temporal encoder of BLIP-3-Video (arXiv 2410.16267). The memory M
    starts at zero. For each frame x_t: z = S_r([M; x_t]) reads, o = Transformer(z) processes, M <- S_m([M; x_t; o])
    writes, where S_k is TokenLearner 1.1 with k outputs. The Transformer adds a learned position to each token read and
    ends with a LayerNorm, as in the released code. Differences from the paper: the embeddings that distinguish memory,
    inputs and outputs are added only to the input of the scores, not to the tokens (they would accumulate in the
    memory), and positions within a frame are a learned projection of sines. Differences from the released code: GELU is
    exact (tanh there) and the LayerNorm epsilon is 1e-5 (1e-6 there).
    """

    same_weights: ClassVar = ("token_turing", "token_turing_memory")

    def set_machine(self, *, dim: int, memory: int, read: int, outputs: int, num_layers: int, heads: int) -> None:
        """Creates the parameters; their names are the same in all methods, which can thus share checkpoints.

        Args:
            dim: channels of the tokens.
            memory: number m of tokens of the memory.
            read: number r of tokens that are read and processed at each frame.
            outputs: number of tokens that `summarize` returns.
            num_layers, heads: of the Transformer.
        """
        check_counts(memory=memory, read=read, num_layers=num_layers, heads=heads)
        self.places = PositionEmbedding(dim)
        self.slots = nn.Parameter(0.5 * torch.randn(memory, dim))
        self.outputs = nn.Parameter(0.5 * torch.randn(read, dim))
        self.reader, self.writer = TokenSummary(dim, read, _HIDDEN), TokenSummary(dim, memory, _HIDDEN)
        self.order = nn.Parameter(0.02 * torch.randn(read, dim))
        self.blocks = nn.Sequential(*(Block(dim, heads) for _ in range(num_layers)))
        self.norm = nn.LayerNorm(dim)
        self.last = TokenSummary(dim, outputs, _HIDDEN)

    def empty(self, videos: int) -> Tensor:
        """The memory before the first frame, zeros [B,m,C]."""
        return self.slots.new_zeros(videos, *self.slots.shape)

    def update(
        self, x: Tensor, position_embedding: Tensor, real: Tensor, memory: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Processes a frame.

        Args:
            x: [B,n,C], its tokens, in the dtype of the parameters.
            position_embedding: [B,n,C].
            real: bool [B,n], which of the tokens are no padding; a frame without tokens leaves the memory unchanged.
            memory: [B,m,C].

        Returns:
            The new memory, the output [B,r,C], and the read and write maps, float32 [B,r,m+n] and [B,m,m+n+r].
        """
        position_embedding = torch.cat([self.slots.expand_as(memory), position_embedding], 1)
        both = torch.cat([memory, x], 1)
        mask = torch.cat([real.new_ones(memory.shape[:2]), real], 1)
        reading = self.reader(both + position_embedding, mask)
        out = self.norm(self.blocks(reading.to(x.dtype) @ both + self.order))
        position_embedding = torch.cat([position_embedding, self.outputs.expand_as(out)], 1)
        both, mask = torch.cat([both, out], 1), torch.cat([mask, real.new_ones(out.shape[:2])], 1)
        writing = self.writer(both + position_embedding, mask)
        nonempty = real.any(1)[:, None, None]
        return torch.where(nonempty, writing.to(x.dtype) @ both, memory), out, reading, writing

    def summarize(self, memory: Tensor) -> tuple[Tensor, Tensor]:
        """The output tokens [B,k,C] of a memory, and their weights, float32 [B,k,m]."""
        maps = self.last(memory + self.slots)
        return maps.to(memory.dtype) @ memory, maps
