"""Vector quantization by stream: the first rows of the grid use one codebook, the others a second one."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from fewtokens.core.grid import Grid
from fewtokens.core.method import Quantized, Quantizer, load_weights
from fewtokens.methods.ops.codebooks import Codebook, book_losses
from fewtokens.methods.ops.codes import check_codebook, project, projection, real_rows, straight_through


class StreamVq(Quantizer):
    """Replaces each token by the nearest entry of the codebook of its stream, such as keyframes and motion.

    Video-LaVIT (arXiv 2402.03161), whose keyframes and motion have a codebook each. The tokens of the first `rows` rows
    of the grid in time are one stream, the others the second. A token has two codes, of which that of the other
    stream is -1.

    Unused entries restart: every 50th training call, at most a fifth of those of a codebook, near its most used
    entries, with noise of 0.1.

    Args:
        sizes: number of entries of each codebook, at least 2. Default: (1024, 1024).
        dim: channels of the tokens; linear layers lead to the entries and back. No layers if equal to `code_dim`.
        rows: rows of the grid in time that use the first codebook, at least 1. Default: 1.
        code_dim: channels of an entry. Default: 8.
        commitment: weight of the squared distance from the token to its entry. Default: 0.25.
        checkpoint: path of a safetensors file with trained parameters; None initializes them randomly.
    """

    learned = True
    full_grid = True
    paper = (
        "Video-LaVIT: Unified Video-Language Pre-training with Decoupled Visual-Motional Tokenization, arXiv 2402.03161"
    )
    license = "written from the paper; reference code under its own license"
    cost = "O(N K D) for K entries of D channels"

    def __init__(
        self,
        sizes: Sequence[int] = (1024, 1024),
        *,
        dim: int = 384,
        rows: int = 1,
        code_dim: int = 8,
        commitment: float = 0.25,
        checkpoint: str | None = None,
    ) -> None:
        super().__init__()
        if len(sizes) != 2:
            raise ValueError(f"sizes must be two numbers of entries, got {tuple(sizes)}")
        for size in sizes:
            check_codebook(size, code_dim)
        if rows < 1:
            raise ValueError(f"rows must be at least 1, got {rows}")
        self.sizes, self.dim, self.rows, self.code_dim = tuple(sizes), dim, rows, code_dim
        self.commitment, self.checkpoint = commitment, checkpoint
        self.codebooks = nn.ModuleList(Codebook(size, code_dim) for size in sizes)
        self.project_in, self.project_out = projection(dim, code_dim), projection(code_dim, dim)
        load_weights(self, checkpoint)

    @property
    def codebook_sizes(self) -> tuple[int, ...]:
        return self.sizes

    @property
    def causal(self) -> bool:
        # Which rows are the first ones depends on the start of the video.
        return False

    def planned_bits(self, grid: Grid, tokens: int) -> float:
        first = min(self.rows, grid.T) * grid.cells_per_frame
        bits = self._code_bits
        return float(first * bits[0] + (tokens - first) * bits[1])

    def quantize(self, features: Tensor, mask: Tensor | None, grid: Grid) -> Quantized:
        x = project(self.project_in, features)
        real = x.new_ones(x.shape[:2], dtype=torch.bool) if mask is None else mask
        codes = torch.full((*x.shape[:2], 2), -1, device=x.device)
        entries: list[Tensor] = []
        losses: dict[str, Tensor] = {}
        for stream, (book, part) in enumerate(zip(self._books(), self._parts(grid), strict=True)):
            if self.training:
                book.restart()
            own = book.codes(x[:, part])
            codes[:, part, stream] = own
            entry = book.entries(own)
            entries.append(entry)
            if self.training and bool(real[:, part].any()):
                book.record(own.masked_fill(~real[:, part], -1))
                own_losses = book_losses(
                    real_rows(x[:, part], real[:, part]), real_rows(entry, real[:, part]), self.commitment
                )
                losses |= {f"{name}{stream}": loss for name, loss in own_losses.items()}
        value = straight_through(torch.cat(entries, 1), x)
        return Quantized(project(self.project_out, value), codes, losses)

    def lookup(self, codes: Tensor, grid: Grid) -> Tensor:
        entries = [
            book.entries(codes[:, part, stream])
            for stream, (book, part) in enumerate(zip(self._books(), self._parts(grid), strict=True))
        ]
        return project(self.project_out, torch.cat(entries, 1))

    def _books(self) -> list[Codebook]:
        return [book for book in self.codebooks if isinstance(book, Codebook)]

    def _parts(self, grid: Grid) -> tuple[slice, slice]:
        """The tokens of each stream."""
        first = self.rows * grid.cells_per_frame
        return slice(None, first), slice(first, None)
