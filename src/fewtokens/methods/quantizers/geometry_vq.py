"""Geometry VQ: a codebook for the features of a token, and scalars in 0..1, such as its geometry, rounded."""

from __future__ import annotations

import torch
from torch import Tensor

from fewtokens.core.method import Quantized, Quantizer, load_weights
from fewtokens.methods.ops.codes import straight_through
from fewtokens.methods.quantizers.vq import Vq


class GeometryVq(Quantizer):
    """Replaces features by the nearest entry of a codebook, and rounds the last channels, which are scalars in 0..1.

    For tokens with a geometry, such as the 2-D Gaussians of GaussianToken (arXiv 2501.15619), whose code leaves five
    floats per token unquantized. A token has the code of its entry and one per scalar, round((levels - 1) * x), with a
    straight-through gradient; scalars outside 0..1 are clamped.

    Args:
        size: number of entries, at least 2. Default: 1024.
        dim: channels of the tokens, with the scalars.
        scalars: number of last channels that are rounded, at least 1. Default: 5.
        levels: values of a scalar, at least 2. Default: 256, 8 bits.
        code_dim: channels of an entry. Default: 8.
        decay: of the moving mean of entries, in (0, 1). Default: 0.8; see `vq`.
        commitment: weight of the squared distance from the features to their entry. Default: 0.25.
        checkpoint: path of a safetensors file with trained parameters; None initializes them randomly.
    """

    learned = True
    paper = "GaussianToken: An Effective Image Tokenizer with 2D Gaussian Splatting, arXiv 2501.15619"
    license = "written from the paper"
    cost = "O(N K D) for K entries of D channels"

    def __init__(
        self,
        size: int = 1024,
        *,
        dim: int = 384,
        scalars: int = 5,
        levels: int = 256,
        code_dim: int = 8,
        decay: float = 0.8,
        commitment: float = 0.25,
        checkpoint: str | None = None,
    ) -> None:
        super().__init__()
        if not 1 <= scalars < dim:
            raise ValueError(f"scalars must be at least 1 and below the number of channels, {dim}, got {scalars}")
        if not 2 <= levels <= 1 << 24:
            raise ValueError(f"levels must be in 2..2**24, got {levels}")
        self.size, self.dim, self.scalars, self.levels, self.code_dim = size, dim, scalars, levels, code_dim
        self.decay, self.commitment, self.checkpoint = decay, commitment, checkpoint
        self.vq = Vq(size, dim=dim - scalars, code_dim=code_dim, cosine=False, decay=decay, commitment=commitment)
        load_weights(self, checkpoint)

    @property
    def codebook_sizes(self) -> tuple[int, ...]:
        return (self.size, *[self.levels] * self.scalars)

    def quantize(self, features: Tensor, mask: Tensor | None = None) -> Quantized:
        quantized, codes, losses = self.vq.quantize(features[..., : -self.scalars], mask)
        scalars = features[..., -self.scalars :].float().clamp(0, 1)
        rounded = (scalars * (self.levels - 1)).round().long()
        values = straight_through(self._values(rounded), scalars)
        return Quantized(torch.cat([quantized, values], -1), torch.cat([codes, rounded], -1), losses)

    def lookup(self, codes: Tensor) -> Tensor:
        return torch.cat([self.vq.lookup(codes[..., :1]), self._values(codes[..., 1:])], -1)

    def _values(self, codes: Tensor) -> Tensor:
        """The scalars of their codes; 0 for the code -1."""
        return codes.clamp(min=0).float() / (self.levels - 1)
