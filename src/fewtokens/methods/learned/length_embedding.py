"""A learned embedding of the number of cells that each token stands for."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from fewtokens.core.grid import Grid
from fewtokens.core.method import Method, load_weights
from fewtokens.core.plan import Plan
from fewtokens.core.tokens import Tokens


class LengthEmbedding(Method):
    """Adds a learned embedding of each token's size (run length): `rlt | length_embedding(32)`.

    The length encoding of Run-Length Tokenization (arXiv 2411.05222): a table with one vector for each length from 1 to
    `longest`; longer runs use the last one. It acts between patch embedding and encoder and drops nothing. It needs
    fine-tuning.

    Args:
        longest: number of lengths with a separate vector, at least 1. Default: 32.
        dim: channels of the features.
        checkpoint: path of a safetensors file with trained parameters; None initializes them randomly.
    """

    stage = "pixels"
    learned = True
    paper = "Don't Look Twice: Faster Video Transformers with Run-Length Tokenization, arXiv 2411.05222"
    license = "written from the paper; reference code MIT"
    cost = "O(NC)"

    def __init__(self, longest: int = 32, *, dim: int = 384, checkpoint: str | None = None) -> None:
        super().__init__()
        if longest < 1:
            raise ValueError(f"longest must be at least 1, got {longest}")
        self.longest, self.dim, self.checkpoint = longest, dim, checkpoint
        self.lengths = nn.Parameter(nn.init.trunc_normal_(torch.empty(longest, dim), std=0.02))
        load_weights(self, checkpoint)

    def forward(self, tokens: Tokens, **cues: Any) -> Tokens:
        row = tokens.sizes.long().clamp(1, self.longest) - 1
        embedding = self.lengths.to(tokens.features.dtype)[row]
        return tokens.replace(features=tokens.features + embedding * tokens.mask[..., None])

    def decide(self, tokens: Tokens, **cues: Any) -> Plan:
        return Plan.identity(tokens)

    def planned_count(self, grid: Grid) -> int:
        return grid.cells
