"""Lookup-free quantization: a code is the signs of a few channels."""

from __future__ import annotations

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

# Log odds of a bit per unit of its channel: 4 / temperature, at the published temperature of 0.01.
_SHARPNESS = 400.0


class Lfq(Quantizer):
    """Replaces each of a few channels by its sign; the code consists of these bits.

    LFQ of MAGVIT-v2 (arXiv 2310.05737). The first bit counts least, as in Open-MAGVIT2 (vector-quantize-pytorch has the
    opposite order). In training, two losses: the entropy of each token's code minus `diversity` times that of the mean
    code, and the commitment to the signs. The first is usually negative. The entropy of the mean code is computed over
    groups of bits, since all 2^18 codes of each token would take 1 MB.

    Args:
        num_bits: channels that are quantized, in 1..62. Default: 18, as in the paper.
        dim: channels of the tokens; linear layers lead to the bits and back. No layers if equal.
        entropy: weight of the entropies. Default: 0.1.
        diversity: weight of the entropy of the mean code. Default: 1.
        commitment: weight of the commitment. Default: 0.25.
        group: bits of a group for the entropy of the mean code, in 1..16. Default: 9.
        checkpoint: path of a safetensors file with trained parameters; None initializes them randomly.
    """

    learned = True
    paper = "Language Model Beats Diffusion: Tokenizer is Key to Visual Generation (MAGVIT-v2), arXiv 2310.05737"
    license = "written from the paper"
    cost = "O(N C K) for K bits; in training also O(N K 2^group / group)"

    def __init__(
        self,
        num_bits: int = 18,
        *,
        dim: int = 384,
        entropy: float = 0.1,
        diversity: float = 1.0,
        commitment: float = 0.25,
        group: int = 9,
        checkpoint: str | None = None,
    ) -> None:
        super().__init__()
        check_bits(num_bits, group)
        self.num_bits, self.dim, self.group, self.checkpoint = num_bits, dim, group, checkpoint
        self.entropy, self.diversity, self.commitment = entropy, diversity, commitment
        self.project_in, self.project_out = projection(dim, num_bits), projection(num_bits, dim)
        load_weights(self, checkpoint)

    @property
    def codebook_sizes(self) -> tuple[int, ...]:
        return (2**self.num_bits,)

    def quantize(self, features: Tensor, mask: Tensor | None = None) -> Quantized:
        x = project(self.project_in, features)
        codes = signs_to_codes(x)
        losses = {}
        if self.training:
            real = real_rows(x, mask)
            sample, batch = bit_entropies(_SHARPNESS * real, self.group)
            losses["entropy"] = self.entropy * (sample - self.diversity * batch)
            losses["commitment"] = self.commitment * (real - real.sign().detach()).square().mean()
        signs = straight_through(codes_to_signs(codes, self.num_bits), x)
        return Quantized(project(self.project_out, signs), codes, losses)

    def lookup(self, codes: Tensor) -> Tensor:
        return project(self.project_out, codes_to_signs(codes, self.num_bits))
