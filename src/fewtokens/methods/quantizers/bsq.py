"""Binary spherical quantization: a code is the signs of a few channels of a vector of length 1."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from fewtokens.core.method import Quantized, Quantizer, load_weights
from fewtokens.methods.ops.codes import (
    bit_entropies,
    check_bits,
    codes_to_signs,
    project,
    projection,
    real_rows,
    signs_to_codes,
    straight_through,
)


class Bsq(Quantizer):
    """Projects a few channels to the unit sphere and replaces each by its sign; the code consists of these bits.

    BSQ (arXiv 2406.07548). Both the vector and the one it is replaced with, whose channels are +-1/sqrt(K), have length
    1, so their distance is bounded. In training, one loss: the entropy of each token's code, which is exact because
    bits are independent, minus that of the mean code, whose upper bound is computed over groups of bits as in the
    paper. The published training starts at three times the weight and decreases it to the final one over 2,000 steps.

    Args:
        num_bits: channels that are quantized, in 1..62. Default: 18; the paper also has 36.
        dim: channels of the tokens; linear layers lead to the bits and back. No layers if equal.
        entropy: weight of the entropies. Default: 0.1.
        diversity: weight of the entropy of the mean code. Default: 1.
        group: bits of a group for the entropy of the mean code, in 1..16. Default: 9.
        checkpoint: path of a safetensors file with trained parameters; None initializes them randomly.
    """

    learned = True
    paper = "Image and Video Tokenization with Binary Spherical Quantization, arXiv 2406.07548"
    license = "written from the paper; reference code MIT"
    cost = "O(N C K) for K bits; in training also O(N K 2^group / group)"

    def __init__(
        self,
        num_bits: int = 18,
        *,
        dim: int = 384,
        entropy: float = 0.1,
        diversity: float = 1.0,
        group: int = 9,
        checkpoint: str | None = None,
    ) -> None:
        super().__init__()
        check_bits(num_bits, group)
        self.num_bits, self.dim, self.group, self.checkpoint = num_bits, dim, group, checkpoint
        self.entropy, self.diversity = entropy, diversity
        self.project_in, self.project_out = projection(dim, num_bits), projection(num_bits, dim)
        load_weights(self, checkpoint)

    @property
    def codebook_sizes(self) -> tuple[int, ...]:
        return (2**self.num_bits,)

    def quantize(self, features: Tensor, mask: Tensor | None = None) -> Quantized:
        x = F.normalize(project(self.project_in, features), dim=-1)
        codes = signs_to_codes(x)
        losses = {}
        if self.training:
            real = real_rows(x, mask)
            # Log odds of a bit: the two codes that differ in it have the logits +-2 u_i / sqrt(K).
            sample, batch = bit_entropies(4 * real * self.num_bits**-0.5, self.group)
            losses["entropy"] = self.entropy * (sample - self.diversity * batch)
        directions = straight_through(self._directions(codes), x)
        return Quantized(project(self.project_out, directions), codes, losses)

    def lookup(self, codes: Tensor) -> Tensor:
        return project(self.project_out, self._directions(codes))

    def _directions(self, codes: Tensor) -> Tensor:
        """The vectors of length 1 that codes stand for, float32 [B,N,K]."""
        return codes_to_signs(codes, self.num_bits) * self.num_bits**-0.5
