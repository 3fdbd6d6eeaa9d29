"""Residual vector quantization of groups of channels: each group has a chain of codebooks."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from fewtokens.core.method import Quantized, Quantizer, load_weights
from fewtokens.methods.ops.codes import (
    check_codebook,
    entries,
    library,
    project,
    projection,
    quantize_with,
    straight_through,
)


class GroupedResidualVq(Quantizer):
    """Splits the channels of a token into groups and quantizes each by residual vector quantization.

    HiFi-Codec (arXiv 2305.02765); with the features of a shallow and a deep layer as two groups it is the quantizer of
    DualToken (arXiv 2503.14324), whose levels share a codebook. The codes of the first group come first. Neither
    features nor gradients of a group depend on another group.

    Args:
        size: number of entries of each codebook, at least 2. Default: 1024.
        dim: channels of the tokens.
        groups: number of groups, in 1..dim; the first have one channel more if the number does not divide `dim`.
            Default: 2.
        levels: number of codebooks of a group, at least 1. Default: 4.
        code_dim: channels of an entry. Default: 8.
        decay: of the moving mean, in (0, 1). Default: 0.99.
        restart: moving number of tokens below which an entry restarts, at least 0. Default: 1; 0 for never.
        checkpoint: path of a safetensors file with trained parameters; None initializes them randomly.
    """

    learned = True
    paper = "HiFi-Codec: Group-residual Vector Quantization for High Fidelity Audio Codec, arXiv 2305.02765"
    license = "vector-quantize-pytorch, MIT"
    cost = "O(G L N K D) for G groups of L levels of K entries of D channels"

    def __init__(
        self,
        size: int = 1024,
        *,
        dim: int = 384,
        groups: int = 2,
        levels: int = 4,
        code_dim: int = 8,
        decay: float = 0.99,
        restart: float = 1.0,
        checkpoint: str | None = None,
    ) -> None:
        super().__init__()
        check_codebook(size, code_dim, decay, restart)
        if not 1 <= groups <= dim:
            raise ValueError(f"groups must be in 1..{dim}, the number of channels, got {groups}")
        if levels < 1:
            raise ValueError(f"levels must be at least 1, got {levels}")
        self.size, self.dim, self.groups, self.levels = size, dim, groups, levels
        self.code_dim, self.decay, self.restart, self.checkpoint = code_dim, decay, restart, checkpoint
        self.codebooks = nn.ModuleList(
            library().ResidualVQ(
                dim=code_dim, num_quantizers=levels, codebook_size=size, decay=decay,
                threshold_ema_dead_code=restart, commitment_weight=0.25, rotation_trick=False,
            )
            for _ in range(groups)
        )  # fmt: skip
        channels = [len(part) for part in torch.arange(dim).tensor_split(groups)]
        self.project_in = nn.ModuleList(projection(count, code_dim) for count in channels)
        self.project_out = nn.ModuleList(projection(code_dim, count) for count in channels)
        load_weights(self, checkpoint)

    @property
    def codebook_sizes(self) -> tuple[int, ...]:
        return (self.size,) * (self.groups * self.levels)

    def quantize(self, features: Tensor, mask: Tensor | None = None) -> Quantized:
        parts = [
            quantize_with(codebook, project(layer, part), mask, self.training)
            for codebook, layer, part in zip(
                self.codebooks, self.project_in, features.tensor_split(self.groups, -1), strict=True
            )
        ]
        codes = torch.cat([code for _, code, _ in parts], -1)
        losses = {name: torch.stack([loss[name] for _, _, loss in parts]).sum() for name in parts[0][2]}
        out = torch.cat([project(layer, x) for layer, (x, _, _) in zip(self.project_out, parts, strict=True)], -1)
        return Quantized(straight_through(self.lookup(codes), out), codes, losses)

    def lookup(self, codes: Tensor) -> Tensor:
        """Returns the features of codes [B,N,Q]; -1 stands for no detail of that level."""
        parts = []
        for codebook, layer, group in zip(self.codebooks, self.project_out, codes.split(self.levels, -1), strict=True):
            levels: Any = codebook.layers
            details = [entries(book, code) for book, code in zip(levels, group.unbind(-1), strict=True)]
            parts.append(project(layer, torch.stack(details).sum(0)))
        return torch.cat(parts, -1)
