"""Vector quantization by position: the cells of a frame take turns in using several codebooks."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from fewtokens.core.grid import Grid
from fewtokens.core.method import Quantized, Quantizer, load_weights
from fewtokens.core.tokens import Tokens
from fewtokens.methods.ops.codebooks import Codebook, book_losses
from fewtokens.methods.ops.codes import check_codebook, project, projection, real_rows, straight_through


class PositionVq(Quantizer):
    """Replaces each token by the nearest entry of the codebook of its position in the frame.

    ReVQ (arXiv 2507.10547), whose latent vectors of an image have a codebook each, or share one in groups: cell n of a
    frame uses codebook n modulo `groups`. A code is the index in that codebook. The frames of a video use the same
    codebooks. For latent tokens without rows and columns, use a grid of one row.

    Unused entries restart: every 50th training call, at most a fifth of those of a codebook, near its most used
    entries, with noise of 0.1. ReVQ trains entries with the squared distance of its decoder's output only; this
    method adds the two losses of VQ-VAE.

    Args:
        size: number of entries of each codebook, at least 2. Default: 1024.
        dim: channels of the tokens; linear layers lead to the entries and back. No layers if equal to `code_dim`.
        groups: number of codebooks, at least 1; the number of cells of a frame for one per cell. Default: 4.
        code_dim: channels of an entry. Default: 8.
        commitment: weight of the squared distance from the token to its entry. Default: 0.25.
        checkpoint: path of a safetensors file with trained parameters; None initializes them randomly.
    """

    learned = True
    full_grid = True
    paper = "Quantize-then-Rectify: Efficient VQ-VAE Training (ReVQ), arXiv 2507.10547"
    license = "written from the paper; reference code MIT"
    cost = "O(N K D) for K entries of D channels"

    def __init__(
        self,
        size: int = 1024,
        *,
        dim: int = 384,
        groups: int = 4,
        code_dim: int = 8,
        commitment: float = 0.25,
        checkpoint: str | None = None,
    ) -> None:
        super().__init__()
        check_codebook(size, code_dim)
        if groups < 1:
            raise ValueError(f"groups must be at least 1, got {groups}")
        self.size, self.dim, self.groups, self.code_dim = size, dim, groups, code_dim
        self.commitment, self.checkpoint = commitment, checkpoint
        self.codebook = Codebook(size, code_dim, groups=groups)
        self.project_in, self.project_out = projection(dim, code_dim), projection(code_dim, dim)
        load_weights(self, checkpoint)

    @property
    def codebook_sizes(self) -> tuple[int, ...]:
        return (self.size,)

    def quantize(self, features: Tensor, mask: Tensor | None, grid: Grid) -> Quantized:
        x = project(self.project_in, features)
        if self.training:
            self.codebook.restart()
        codes = self._join(self.codebook.codes(self._split(x, grid))[..., None], grid, len(x))
        entry, losses = self._entries(codes, grid), {}
        if self.training:
            real = codes if mask is None else codes.masked_fill(~mask[..., None], -1)
            self.codebook.record(self._split(real, grid, padding=-1)[..., 0])
            losses = book_losses(real_rows(x, mask), real_rows(entry, mask), self.commitment)
        return Quantized(project(self.project_out, straight_through(entry, x)), codes, losses)

    def lookup(self, codes: Tensor, grid: Grid) -> Tensor:
        return project(self.project_out, self._entries(codes, grid))

    def codes_by_book(self, tokens: Tokens) -> tuple[Tensor, tuple[int, ...]]:
        codes, sizes = super().codes_by_book(tokens.require_full_grid(self.name))
        cells = torch.arange(codes.shape[1], device=codes.device) % tokens.grid.cells_per_frame
        books = torch.arange(self.groups, device=codes.device)
        return codes.masked_fill(cells[:, None] % self.groups != books, -1), sizes * self.groups

    def _entries(self, codes: Tensor, grid: Grid) -> Tensor:
        entry = self.codebook.entries(self._split(codes, grid, padding=-1)[..., 0])
        return self._join(entry, grid, len(codes))

    def _split(self, x: Tensor, grid: Grid, padding: int = 0) -> Tensor:
        """The tokens [B,N,D] of each group, [G,B*T,n,D]; frames are padded to n cells per group."""
        cells = grid.cells_per_frame
        frames = F.pad(x.reshape(-1, cells, x.shape[-1]), (0, 0, 0, -cells % self.groups), value=padding)
        return frames.unflatten(1, (-1, self.groups)).permute(2, 0, 1, 3)

    def _join(self, x: Tensor, grid: Grid, batch: int) -> Tensor:
        """The inverse of `_split`."""
        frames = x.permute(1, 2, 0, 3).flatten(1, 2)[:, : grid.cells_per_frame]
        return frames.reshape(batch, -1, x.shape[-1])
