"""Finite scalar quantization: each of a few channels is rounded to one of its levels."""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch import Tensor

from fewtokens.core.method import Quantized, Quantizer, load_weights
from fewtokens.methods.ops.codes import library, project, projection, straight_through


class Fsq(Quantizer):
    """Rounds each of a few channels to a fixed number of levels; the code is the index of the combination.

    FSQ (arXiv 2309.15505). A channel with L levels is bounded by tanh and rounded, with a straight-through gradient;
    the first channel counts fastest in the code. No loss is needed, and all codes are used after little training.

    Args:
        levels: levels of each channel, at least 3. (8, 5, 5, 5) has 1,000 codes; (8, 8, 8, 5, 5, 5), 64,000, is that of
            the Cosmos tokenizers, and (8, 8, 8, 8, 8, 8), 262,144, that of VidTok.
        dim: channels of the tokens; linear layers lead to the channels that are quantized and back. No layers if equal.
        groups: codes per token: the channels are quantized in this many groups with the same levels. Default: 1.
            With more groups this is channel-split quantization, which is the subject of patent applications
            (US20260087351A1, US20260089325A1).
        checkpoint: path of a safetensors file with trained parameters; None initializes them randomly.
    """

    learned = True
    paper = "Finite Scalar Quantization: VQ-VAE Made Simple, arXiv 2309.15505"
    license = "vector-quantize-pytorch, MIT"
    cost = "O(N C D) for D quantized channels"

    def __init__(
        self,
        levels: Sequence[int] = (8, 5, 5, 5),
        *,
        dim: int = 384,
        groups: int = 1,
        checkpoint: str | None = None,
    ) -> None:
        super().__init__()
        if not levels or min(levels) < 3:
            raise ValueError(f"levels must be at least 3 each, got {tuple(levels)}; lfq and bsq have two")
        if math.prod(levels) >= 2**31:
            raise ValueError(f"levels must have fewer than 2**31 combinations, got {math.prod(levels)}; use groups")
        if groups < 1:
            raise ValueError(f"groups must be at least 1, got {groups}")
        self.levels, self.dim, self.groups, self.checkpoint = tuple(levels), dim, groups, checkpoint
        self.scalars = library().FSQ(list(levels), return_indices=False)
        self.project_in = projection(dim, groups * len(levels))
        self.project_out = projection(groups * len(levels), dim)
        load_weights(self, checkpoint)

    @property
    def codebook_sizes(self) -> tuple[int, ...]:
        return (math.prod(self.levels),) * self.groups

    def quantize(self, features: Tensor, mask: Tensor | None = None) -> Quantized:
        x = project(self.project_in, features).unflatten(-1, (self.groups, -1))
        rounded = self.scalars.quantize(x)
        codes = self.scalars.codes_to_indices(rounded.double()).long()  # float32 is exact up to 2**24 only
        values = straight_through(self._values(codes), rounded)
        return Quantized(project(self.project_out, values.flatten(2)), codes, {})

    def lookup(self, codes: Tensor) -> Tensor:
        return project(self.project_out, self._values(codes).flatten(2))

    def _values(self, codes: Tensor) -> Tensor:
        """The values of the channels of each group, [B,N,groups,levels]; 0 for the code -1."""
        values: Tensor = self.scalars._indices_to_codes(codes.clamp(min=0))
        return values.masked_fill(codes[..., None] < 0, 0)
