"""Product quantization: each group of channels has its own codebook."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from fewtokens.core.method import Quantized, Quantizer, load_weights
from fewtokens.methods.ops.codes import (
    check_codebook,
    entries,
    library,
    orthogonality,
    project,
    projection,
    quantize_with,
    real_rows,
    straight_through,
)


class ProductVq(Quantizer):
    """Splits the channels of a token into groups and quantizes each with a separate codebook.

    Product quantization (Jegou et al., 2011, doi 10.1109/TPAMI.2010.57), as in FQGAN (arXiv 2411.16681). Its penalty
    on similar entries is an option. Here entries are moving means of tokens (decay 0.99), so the penalty acts on the
    tokens that choose them. The losses on features of a teacher are those of a tokenizer.

    Args:
        size: number of entries of each codebook, at least 2. Default: 1024.
        dim: channels of the tokens.
        groups: codes per token, in 1..dim; the first have one channel more if the number does not divide `dim`.
            Default: 2.
        code_dim: channels of an entry. Default: 8.
        cosine: whether entries are compared by cosine instead of Euclidean distance. Default: True.
        orthogonality: weight of the mean squared cosine between the entries of a token; requires at least two groups.
            Default: 0.
        restart: moving number of tokens below which an entry restarts, at least 0. Default: 1; 0 for never.
        checkpoint: path of a safetensors file with trained parameters; None initializes them randomly.
    """

    learned = True
    paper = "Product Quantization for Nearest Neighbor Search, IEEE TPAMI 2011"
    license = "vector-quantize-pytorch, MIT"
    cost = "O(G N K D) for G groups of K entries of D channels"

    def __init__(
        self,
        size: int = 1024,
        *,
        dim: int = 384,
        groups: int = 2,
        code_dim: int = 8,
        cosine: bool = True,
        restart: float = 1.0,
        orthogonality: float = 0.0,
        checkpoint: str | None = None,
    ) -> None:
        super().__init__()
        check_codebook(size, code_dim, restart=restart)
        if not 1 <= groups <= dim:
            raise ValueError(f"groups must be in 1..{dim}, the number of channels, got {groups}")
        if orthogonality and groups < 2:
            raise ValueError(f"orthogonality requires at least two groups, got groups={groups}")
        self.size, self.dim, self.groups, self.code_dim, self.cosine = size, dim, groups, code_dim, cosine
        self.restart, self.orthogonality, self.checkpoint = restart, orthogonality, checkpoint
        self.codebooks = nn.ModuleList(
            library().VectorQuantize(
                code_dim, size, use_cosine_sim=cosine, decay=0.99,
                threshold_ema_dead_code=restart, commitment_weight=0.25, rotation_trick=False,
            )
            for _ in range(groups)
        )  # fmt: skip
        sizes = [len(part) for part in torch.arange(dim).tensor_split(groups)]
        self.project_in = nn.ModuleList(projection(size, code_dim) for size in sizes)
        self.project_out = nn.ModuleList(projection(code_dim, size) for size in sizes)
        load_weights(self, checkpoint)

    @property
    def codebook_sizes(self) -> tuple[int, ...]:
        return (self.size,) * self.groups

    def quantize(self, features: Tensor, mask: Tensor | None = None) -> Quantized:
        parts = [
            quantize_with(codebook, project(layer, part), mask, self.training)
            for codebook, layer, part in zip(
                self.codebooks, self.project_in, features.tensor_split(self.groups, -1), strict=True
            )
        ]
        codes = torch.stack([code for _, code, _ in parts], -1)
        losses = {name: torch.stack([loss[name] for _, _, loss in parts]).sum() for name in parts[0][2]}
        quantized = [x for x, _, _ in parts]
        if self.training and self.orthogonality:
            stacked = real_rows(torch.stack(quantized, -2), mask)
            losses["orthogonality"] = self.orthogonality * orthogonality(stacked)
        # The values of the entries as they are after the step, so that `lookup` gives the same bits and the gradient of
        # the projection is that of the features returned.
        values = [
            straight_through(entries(codebook, code), x)
            for codebook, (x, code, _) in zip(self.codebooks, parts, strict=True)
        ]
        return Quantized(self._join(values), codes, losses)

    def lookup(self, codes: Tensor) -> Tensor:
        parts = zip(self.codebooks, codes.unbind(-1), strict=True)
        return self._join([entries(codebook, code) for codebook, code in parts])

    def _join(self, parts: Sequence[Tensor]) -> Tensor:
        """Joins the entries [B,N,code_dim] of all groups to features [B,N,C]."""
        return torch.cat([project(layer, part) for layer, part in zip(self.project_out, parts, strict=True)], -1)
