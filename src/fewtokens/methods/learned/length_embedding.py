"""A learned embedding of how many cells each token stands for, added to it."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from fewtokens.core.grid import Grid
from fewtokens.core.method import Method, load_weights
from fewtokens.core.plan import Plan
from fewtokens.core.tokens import Tokens


class LengthEmbedding(Method):
    """Adds a learned vector for a token's size, such as the length of a run: `rlt | length_embedding(32)`.

    Run-Length Tokenization (arXiv 2411.05222): a table of `longest` lengths; longer runs take the last one. It comes
    between patch embedding and encoder, drops nothing, and needs fine-tuning.

    Args:
        longest: lengths with a vector of their own.
        dim: channels of the features.
        checkpoint: a safetensors file with trained parameters; None draws them.
    """

    stage = "pixels"
    learned = True
    paper = "Don't Look Twice: Faster Video Transformers with Run-Length Tokenization, arXiv 2411.05222"
    license = "written from the paper; reference code MIT"
    cost = "O(NC)"

    def __init__(self, longest: int = 32, *, dim: int = 384, checkpoint: str | None = None) -> None:
        super().__init__()
        if longest < 1:
            raise ValueError(f"longest counts the run lengths with an embedding, at least 1, got {longest}")
        self.longest, self.dim, self.checkpoint = longest, dim, checkpoint
        self.lengths = nn.Parameter(nn.init.trunc_normal_(torch.empty(longest, dim), std=0.02))
        load_weights(self, checkpoint)

    def forward(self, tokens: Tokens, **cues: Any) -> Tokens:
        row = tokens.sizes.long().clamp(1, self.longest) - 1
        added = self.lengths.to(tokens.features.dtype)[row]
        return tokens.replace(features=tokens.features + added * tokens.mask[..., None])

    def decide(self, tokens: Tokens, **cues: Any) -> Plan:
        return Plan.identity(tokens)

    def planned_count(self, grid: Grid) -> int:
        return grid.cells
