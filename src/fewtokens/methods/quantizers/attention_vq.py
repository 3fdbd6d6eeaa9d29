"""Vector quantization by attention: the code is the entry that the token attends to most."""

from __future__ import annotations

import torch
from torch import Tensor

from fewtokens.core.method import Quantized, Quantizer, load_weights
from fewtokens.methods.ops.codebooks import AttentionBook
from fewtokens.methods.ops.codes import check_codebook, project, projection, real_rows


class AttentionVq(Quantizer):
    """Replaces each token by the value of the entry that it attends to most, with the gradient of the full attention.

    The quantizer of CODA (arXiv 2503.17760), without its scales, which `multi_scale_vq(book="attention")` has:
    q = W_q x and k = W_k e, both normalized (RMSNorm), v = W_v e, A = softmax(q k^T / sqrt(query_dim)). The value is
    v[argmax A], with the gradient of A v to q and k, so that all entries are trained. In training, four losses: the
    squared distance of the result to the token (with both gradients), of the token to the value, of the value to the
    token (0.05), and the entropy of the attention at temperature 0.01 minus that of its mean (0.05).

    Differs from CODA: its entropy of the mean adds 1e-5 to probabilities, so that its gradient is smaller for entries
    that few tokens attend to.

    Args:
        size: number of entries, at least 2. Default: 1024; CODA has 16384 and 65536.
        dim: channels of the tokens; linear layers lead to the entries and back. No layers if equal to `code_dim`.
        code_dim: channels of an entry. Default: 16.
        query_dim: channels of queries and keys. Default: 32.
        checkpoint: path of a safetensors file with trained parameters; None initializes them randomly.
    """

    learned = True
    paper = "CODA: Repurposing Continuous VAEs for Discrete Tokenization, arXiv 2503.17760"
    license = "written from the paper; reference code Apache-2.0"
    cost = "O(N K W) for K entries and queries of W channels; with gradients a table N K"

    def __init__(
        self,
        size: int = 1024,
        *,
        dim: int = 384,
        code_dim: int = 16,
        query_dim: int = 32,
        checkpoint: str | None = None,
    ) -> None:
        super().__init__()
        check_codebook(size, code_dim)
        if query_dim < 1:
            raise ValueError(f"query_dim must be at least 1, got {query_dim}")
        self.size, self.dim, self.code_dim, self.query_dim, self.checkpoint = size, dim, code_dim, query_dim, checkpoint
        self.codebook = AttentionBook(size, code_dim, query_dim=query_dim)
        self.project_in, self.project_out = projection(dim, code_dim), projection(code_dim, dim)
        load_weights(self, checkpoint)

    @property
    def codebook_sizes(self) -> tuple[int, ...]:
        return (self.size,)

    def quantize(self, features: Tensor, mask: Tensor | None = None) -> Quantized:
        x = project(self.project_in, features)
        codes, losses = self.codebook.codes(x), {}
        if self.training or torch.is_grad_enabled():
            entry, logits = self.codebook.attend(x, codes)
            if self.training:
                losses = self.codebook.losses(*(real_rows(value, mask) for value in (x, entry, codes, logits)))
        else:
            entry = self.codebook.entries(codes)
        return Quantized(project(self.project_out, entry), codes[..., None], losses)

    def lookup(self, codes: Tensor) -> Tensor:
        return project(self.project_out, self.codebook.entries(codes[..., 0]))
