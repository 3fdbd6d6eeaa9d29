"""Two codebooks with one index: for what a token means and for how it looks."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from fewtokens.core.method import Quantized, Quantizer, load_weights
from fewtokens.methods.ops.codebooks import Codebook, book_losses, nearest
from fewtokens.methods.ops.codes import check_codebook, project, projection, real_rows, straight_through


class DualVq(Quantizer):
    """Quantizes two halves of the channels with two codebooks that share one index.

    TokenFlow (arXiv 2412.03069): the first half of the channels is semantic, the second is of pixels, and the code is
    argmin d_sem + weight * d_pix, the squared distances to the entries of the two codebooks. With several levels, each
    quantizes what the earlier ones left.

    Differs from TokenFlow: distances are Euclidean, and entries are not normalized, so that the rest can be quantized
    too; its levels are scales of the frame. Unused entries restart, see `position_vq`.

    Args:
        size: number of entries of each codebook, at least 2. Default: 1024; TokenFlow has 32768 and 131072.
        dim: channels of the tokens, at least 2; the first half has one more if the number is odd.
        code_dim: channels of an entry of each codebook. Default: 8.
        weight: of the distance of pixels, at least 0; the code is the nearest semantic entry at 0. Default: 1.
        levels: number of codes, at least 1. Default: 1.
        commitment: weight of the squared distance from the token to its entry. Default: 0.25.
        checkpoint: path of a safetensors file with trained parameters; None initializes them randomly.
    """

    learned = True
    paper = "TokenFlow: Unified Image Tokenizer for Multimodal Understanding and Generation, arXiv 2412.03069"
    license = "written from the paper"
    cost = "O(L N K D) for L levels of K entries of D channels"

    def __init__(
        self,
        size: int = 1024,
        *,
        dim: int = 384,
        code_dim: int = 8,
        weight: float = 1.0,
        levels: int = 1,
        commitment: float = 0.25,
        checkpoint: str | None = None,
    ) -> None:
        super().__init__()
        check_codebook(size, code_dim)
        if dim < 2:
            raise ValueError(f"dim must be at least 2, for two halves, got {dim}")
        if not 0 <= weight < math.inf:
            raise ValueError(f"weight must be at least 0 and finite, got {weight}")
        if levels < 1:
            raise ValueError(f"levels must be at least 1, got {levels}")
        self.size, self.dim, self.code_dim, self.weight = size, dim, code_dim, weight
        self.levels, self.commitment, self.checkpoint = levels, commitment, checkpoint
        # An entry is the semantic one followed by that of pixels.
        self.codebooks = nn.ModuleList(Codebook(size, 2 * code_dim) for _ in range(levels))
        halves = (dim - dim // 2, dim // 2)
        self.project_in = nn.ModuleList(projection(half, code_dim) for half in halves)
        self.project_out = nn.ModuleList(projection(code_dim, half) for half in halves)
        load_weights(self, checkpoint)

    @property
    def codebook_sizes(self) -> tuple[int, ...]:
        return (self.size,) * self.levels

    def quantize(self, features: Tensor, mask: Tensor | None = None) -> Quantized:
        halves = zip(self.project_in, features.tensor_split(2, -1), strict=True)
        x = torch.cat([project(layer, half) for layer, half in halves], -1)
        scale = torch.ones(2 * self.code_dim, device=x.device)
        scale[self.code_dim :] = math.sqrt(self.weight)
        codes: list[Tensor] = []
        losses: dict[str, list[Tensor]] = {}
        rest, total = x, torch.zeros_like(x)
        for book in self.codebooks:
            assert isinstance(book, Codebook)
            if self.training:
                book.restart()
            level = nearest(rest * scale, book.table.float() * scale)
            entry = book.entries(level)
            if self.training:
                book.record(level if mask is None else level.masked_fill(~mask, -1))
                for name, loss in book_losses(real_rows(rest, mask), real_rows(entry, mask), self.commitment).items():
                    losses.setdefault(name, []).append(loss)
            codes.append(level)
            rest, total = rest - entry.detach(), total + entry
        sums = {name: torch.stack(values).sum() for name, values in losses.items()}
        return Quantized(self._join(straight_through(total, x)), torch.stack(codes, -1), sums)

    def lookup(self, codes: Tensor) -> Tensor:
        """Returns the features of codes [B,N,Q]; a missing last level counts as -1."""
        total = torch.zeros(*codes.shape[:-1], 2 * self.code_dim, device=codes.device)
        for book, level in zip(self.codebooks, codes.unbind(-1), strict=False):
            assert isinstance(book, Codebook)
            total = total + book.entries(level)
        return self._join(total)

    def _join(self, entries: Tensor) -> Tensor:
        """Joins the entries [B,N,2*code_dim] of both halves to features [B,N,C]."""
        halves = zip(self.project_out, entries.split(self.code_dim, -1), strict=True)
        return torch.cat([project(layer, half) for layer, half in halves], -1)
