"""Residual vector quantization: each codebook quantizes what the earlier ones left."""

from __future__ import annotations

import torch
from torch import Tensor

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


class ResidualVq(Quantizer):
    """Quantizes each token by several codebooks in turn, each of which quantizes the rest that the earlier ones left.

    RVQ of SoundStream (arXiv 2107.03312). A prefix of the codes stands for the token with less detail.

    Args:
        size: number of entries of each codebook, at least 2. Default: 1024.
        dim: channels of the tokens.
        levels: number of codebooks, at least 1. Default: 4.
        code_dim: channels of an entry. Default: 8.
        level_dropout: whether training uses a random number of the levels for each batch. Default: False, since it
            costs quality at the full length.
        decay: of the moving mean, in (0, 1). Default: 0.99.
        restart: moving number of tokens below which an entry restarts, at least 0. Default: 1; 0 for never.
        checkpoint: path of a safetensors file with trained parameters; None initializes them randomly.
    """

    learned = True
    paper = "SoundStream: An End-to-End Neural Audio Codec, arXiv 2107.03312"
    license = "vector-quantize-pytorch, MIT"
    cost = "O(L N K D) for L levels of K entries of D channels"

    def __init__(
        self,
        size: int = 1024,
        *,
        dim: int = 384,
        levels: int = 4,
        code_dim: int = 8,
        level_dropout: bool = False,
        decay: float = 0.99,
        restart: float = 1.0,
        checkpoint: str | None = None,
    ) -> None:
        super().__init__()
        check_codebook(size, code_dim, decay, restart)
        if levels < 1:
            raise ValueError(f"levels must be at least 1, got {levels}")
        self.size, self.dim, self.levels, self.code_dim = size, dim, levels, code_dim
        self.level_dropout, self.decay, self.restart, self.checkpoint = level_dropout, decay, restart, checkpoint
        self.codebooks = library().ResidualVQ(
            dim=code_dim, num_quantizers=levels, codebook_size=size, quantize_dropout=level_dropout,
            decay=decay, threshold_ema_dead_code=restart, commitment_weight=0.25, rotation_trick=False,
        )  # fmt: skip
        self.project_in, self.project_out = projection(dim, code_dim), projection(code_dim, dim)
        load_weights(self, checkpoint)

    @property
    def codebook_sizes(self) -> tuple[int, ...]:
        return (self.size,) * self.levels

    def quantize(self, features: Tensor, mask: Tensor | None = None) -> Quantized:
        x, codes, losses = quantize_with(self.codebooks, project(self.project_in, features), mask, self.training)
        # The values of the entries as they are after the step, so that `lookup` gives the same bits and the gradient of
        # the projection is that of the features returned.
        return Quantized(project(self.project_out, straight_through(self._sums(codes), x)), codes, losses)

    def lookup(self, codes: Tensor) -> Tensor:
        """Returns the features of codes [B,N,Q]; -1, or a missing last level, stands for no detail of that level."""
        return project(self.project_out, self._sums(codes))

    def _sums(self, codes: Tensor) -> Tensor:
        """The sums of the entries of all levels, float32 [B,N,code_dim]."""
        levels = zip(self.codebooks.layers, codes.unbind(-1), strict=False)
        details = [entries(layer, code) for layer, code in levels]
        return torch.stack(details).sum(0)
