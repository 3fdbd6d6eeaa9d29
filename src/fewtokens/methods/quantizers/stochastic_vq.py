"""Stochastic vector quantization: each token samples its entry, the nearer the more likely."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fewtokens.core.method import Quantized, Quantizer, load_weights
from fewtokens.methods.ops.codebooks import book_losses, nearest, sample_entries, take
from fewtokens.methods.ops.codes import check_codebook, project, projection, real_rows, straight_through


class StochasticVq(Quantizer):
    """Samples the entry of each token from a softmax over its cosines to all entries, and uses the nearest afterwards.

    The quantizer of LARP (arXiv 2410.21264). Tokens and entries have length 1. Sampling trains all entries and makes
    the codes easier to predict for a model of the sequence.

    Differs from LARP: after `eval()` the code is the nearest entry, so that the same video always has the same codes;
    its code samples in evaluation too, which is `deterministic=False`.

    Args:
        size: number of entries, at least 2. Default: 1024; LARP has 8192.
        dim: channels of the tokens; linear layers lead to the entries and back. No layers if equal to `code_dim`.
        code_dim: channels of an entry. Default: 16.
        temperature: divisor of the cosines, above 0. Default: 0.03.
        deterministic: whether the code is the nearest entry outside training. Default: True.
        commitment: weight of the squared distance from the token to its entry, relative to that from the entry to the
            token. Default: 0.25.
        weight: of both losses. Default: 0.1.
        checkpoint: path of a safetensors file with trained parameters; None initializes them randomly.
    """

    learned = True
    paper = "LARP: Tokenizing Videos with a Learned Autoregressive Generative Prior, arXiv 2410.21264"
    license = "written from the paper; reference code MIT"
    cost = "O(N K D) for K entries of D channels"

    def __init__(
        self,
        size: int = 1024,
        *,
        dim: int = 384,
        code_dim: int = 16,
        temperature: float = 0.03,
        deterministic: bool = True,
        commitment: float = 0.25,
        weight: float = 0.1,
        checkpoint: str | None = None,
    ) -> None:
        super().__init__()
        check_codebook(size, code_dim)
        if temperature <= 0:
            raise ValueError(f"temperature must be above 0, got {temperature}")
        self.size, self.dim, self.code_dim, self.temperature = size, dim, code_dim, temperature
        self.deterministic, self.commitment, self.weight, self.checkpoint = (
            deterministic, commitment, weight, checkpoint,
        )  # fmt: skip
        self.table = nn.Parameter(torch.randn(size, code_dim))
        self.project_in, self.project_out = projection(dim, code_dim), projection(code_dim, dim)
        load_weights(self, checkpoint)

    @property
    def codebook_sizes(self) -> tuple[int, ...]:
        return (self.size,)

    def quantize(self, features: Tensor, mask: Tensor | None = None) -> Quantized:
        x = F.normalize(project(self.project_in, features), dim=-1)
        if self.training or not self.deterministic:
            codes = sample_entries(x, F.normalize(self.table.float(), dim=-1), self.temperature)
        else:
            codes = nearest(x, self.table, "cosine")
        entry, losses = self._entries(codes), {}
        if self.training:
            losses = book_losses(real_rows(x, mask), real_rows(entry, mask), self.commitment)
            losses = {name: self.weight * loss for name, loss in losses.items()}
        return Quantized(project(self.project_out, straight_through(entry, x)), codes[..., None], losses)

    def lookup(self, codes: Tensor) -> Tensor:
        return project(self.project_out, self._entries(codes[..., 0]))

    def _entries(self, codes: Tensor) -> Tensor:
        return take(F.normalize(self.table.float(), dim=-1), codes)
