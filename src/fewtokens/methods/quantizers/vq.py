"""Vector quantization: each token is replaced by the nearest entry of a learned codebook."""

from __future__ import annotations

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


class Vq(Quantizer):
    """Replaces each token by the nearest entry of a codebook; the code is its index.

    VQ-VAE (arXiv 1711.00937) with the codebook of later work: entries follow the moving mean of the tokens that choose
    them, of which a linear layer takes few channels, compared by cosine (ViT-VQGAN, arXiv 2110.04627). An entry
    that too few tokens choose restarts at a random token of the batch.

    Args:
        size: number of entries, at least 2. Default: 1024.
        dim: channels of the tokens.
        code_dim: channels of an entry. Default: 8.
        cosine: whether entries are compared by cosine instead of Euclidean distance. Default: True.
        decay: of the moving mean, in (0, 1). Default: 0.99.
        restart: moving number of tokens below which an entry restarts, at least 0. Default: 1; 0 for never.
        commitment: weight of the squared distance from the token to its entry. Default: 0.25.
        checkpoint: path of a safetensors file with trained parameters; None initializes them randomly.
    """

    learned = True
    paper = "Neural Discrete Representation Learning (VQ-VAE), arXiv 1711.00937"
    license = "vector-quantize-pytorch, MIT"
    cost = "O(N K D) for K entries of D channels"

    def __init__(
        self,
        size: int = 1024,
        *,
        dim: int = 384,
        code_dim: int = 8,
        cosine: bool = True,
        decay: float = 0.99,
        restart: float = 1.0,
        commitment: float = 0.25,
        checkpoint: str | None = None,
    ) -> None:
        super().__init__()
        check_codebook(size, code_dim, decay, restart)
        self.size, self.dim, self.code_dim, self.cosine = size, dim, code_dim, cosine
        self.decay, self.restart, self.commitment, self.checkpoint = decay, restart, commitment, checkpoint
        self.codebook = library().VectorQuantize(
            code_dim, size, use_cosine_sim=cosine, decay=decay, threshold_ema_dead_code=restart,
            commitment_weight=commitment, rotation_trick=False,
        )  # fmt: skip
        self.project_in, self.project_out = projection(dim, code_dim), projection(code_dim, dim)
        load_weights(self, checkpoint)

    @property
    def codebook_sizes(self) -> tuple[int, ...]:
        return (self.size,)

    def quantize(self, features: Tensor, mask: Tensor | None = None) -> Quantized:
        x, codes, losses = quantize_with(self.codebook, project(self.project_in, features), mask, self.training)
        # The values of the entries as they are after the step, so that `lookup` gives the same bits and the gradient of
        # the projection is that of the features returned.
        x = straight_through(entries(self.codebook, codes), x)
        return Quantized(project(self.project_out, x), codes[..., None], losses)

    def lookup(self, codes: Tensor) -> Tensor:
        return project(self.project_out, entries(self.codebook, codes[..., 0]))
