"""Vector quantization by scale: each scale quantizes what the coarser ones left of a frame."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fewtokens.core.grid import Grid
from fewtokens.core.method import Quantized, Quantizer, load_weights
from fewtokens.methods.ops.codebooks import AttentionBook, Codebook, book_losses
from fewtokens.methods.ops.codes import check_codebook, project, projection, real_rows, straight_through

# Weight of the distance of vectors to entries, as in VAR.
_COMMITMENT = 0.25
# Weight of the result of a convolution, next to its input.
_MIX = 0.5
# A frame whose scales are dropped keeps this number at least, as in ImageFolder.
_MIN_SCALES = 3


class MultiScaleVq(Quantizer):
    """Quantizes each frame from coarse to fine: at each scale, the rest that the coarser scales left, pooled.

    VAR (arXiv 2404.02905), ImageFolder (arXiv 2410.01756), CODA and VAT. The rest is averaged to the cells of the
    scale (area), which take codes of one shared codebook; their entries are enlarged to the frame (bicubic; linear if
    it has one row, as for a set of tokens without rows and columns), smoothed and subtracted. The result is their sum.

    A token has one code per scale. The codes of a scale of h x w cells are in raster order in the first h*w tokens of
    the frame; the others have -1. Codes of the first k scales stand for the frame with less detail: pass
    `codes[..., :k]` to `lookup`, or set the others to -1.

    Differs from VAR: unused entries restart, see `Codebook`; a scale that is larger than the frame has its size; the
    loss is the mean over scales and frames that keep the scale.

    Args:
        scales: sides of the square scales, or (rows, columns), from coarse to fine. VAR has (1, 2, 3, 4, 5, 6, 8, 10,
            13, 16), with 680 codes per frame, and ImageFolder (1, 1, 2, 3, 3, 4, 5, 6, 8, 11), with 286.
        dim: channels of the tokens; linear layers lead to the entries and back. No layers if equal to `code_dim`.
        size: number of entries, at least 2. Default: 1024.
        code_dim: channels of an entry. Default: 32.
        convolutions: 3x3 convolutions that smooth the enlarged entries, each shared by successive scales; their output
            and input are averaged. Default: 4; 0 for none, as in CODA.
        dropout: fraction of the videos of a training batch that keep a random number of scales, at least 3. Default: 0;
            ImageFolder has 0.1.
        book: "euclidean" or "cosine", how entries are compared (the value of an entry is not normalized); "attention"
            for the quantizer of CODA, see `attention_vq`, with which gradients also pass through the rest.
        checkpoint: path of a safetensors file with trained parameters; None initializes them randomly.
    """

    learned = True
    full_grid = True
    paper = "Visual Autoregressive Modeling: Scalable Image Generation via Next-Scale Prediction, arXiv 2404.02905"
    license = "written from the paper; reference code MIT"
    cost = "O(cells of all scales K D) for K entries of D channels"

    def __init__(
        self,
        scales: Sequence[int | tuple[int, int]] = (1, 2, 4, 8, 16),
        *,
        dim: int = 384,
        size: int = 1024,
        code_dim: int = 32,
        convolutions: int = 4,
        dropout: float = 0.0,
        book: Literal["euclidean", "cosine", "attention"] = "euclidean",
        checkpoint: str | None = None,
    ) -> None:
        super().__init__()
        check_codebook(size, code_dim)
        pairs = [scale if isinstance(scale, Sequence) else (scale, scale) for scale in scales]
        if not pairs or any(len(pair) != 2 or min(pair) < 1 for pair in pairs):
            raise ValueError(f"scales must be sides of at least 1, or (rows, columns), got {tuple(scales)}")
        if not 0 <= convolutions <= len(pairs):
            raise ValueError(f"convolutions must be in 0..{len(pairs)}, the number of scales, got {convolutions}")
        if not 0 <= dropout <= 1:
            raise ValueError(f"dropout must be in [0, 1], got {dropout}")
        if book not in ("euclidean", "cosine", "attention"):
            raise ValueError(f"book must be euclidean, cosine or attention, got {book!r}")
        self.scales, self.dim, self.size, self.code_dim = tuple(scales), dim, size, code_dim
        self.convolutions, self.dropout, self.book, self.checkpoint = convolutions, dropout, book, checkpoint
        self.pairs = pairs
        self.codebook: Codebook | AttentionBook
        if book == "attention":
            self.codebook = AttentionBook(size, code_dim)
        else:
            self.codebook = Codebook(size, code_dim, measure=book)
        self.smoothing = nn.ModuleList(nn.Conv2d(code_dim, code_dim, 3, padding=1) for _ in range(convolutions))
        self.project_in, self.project_out = projection(dim, code_dim), projection(code_dim, dim)
        load_weights(self, checkpoint)

    @property
    def codebook_sizes(self) -> tuple[int, ...]:
        return (self.size,) * len(self.pairs)

    def planned_bits(self, grid: Grid, tokens: int) -> float:
        codes = grid.T * sum(rows * columns for rows, columns in self.shapes(grid))
        return codes * math.log2(self.size)

    def shapes(self, grid: Grid) -> list[tuple[int, int]]:
        """Returns the rows and columns of each scale in the frames of a grid."""
        return [(min(rows, grid.H), min(columns, grid.W)) for rows, columns in self.pairs]

    def quantize(self, features: Tensor, mask: Tensor | None, grid: Grid) -> Quantized:
        with torch.autocast(features.device.type, enabled=False):
            x = _to_frames(project(self.project_in, features), grid)
            real = x.new_ones(len(x), dtype=torch.bool) if mask is None else mask.reshape(len(x), -1)[:, 0]
            keep = self._num_scales(len(features), x.device).repeat_interleave(grid.T)
            if self.training and isinstance(self.codebook, Codebook):
                self.codebook.restart()
            codes = torch.full((len(x), grid.cells_per_frame, len(self.pairs)), -1, device=x.device)
            losses: dict[str, list[Tensor]] = {}
            rest, total = x, torch.zeros_like(x)
            for level, shape in enumerate(self.shapes(grid)):
                pooled = _pool(rest, shape).flatten(2).mT  # [F,h*w,D]
                scale = self.codebook.codes(pooled).masked_fill((keep <= level)[:, None], -1)
                codes[:, : scale.shape[1], level] = scale
                used = real & (keep > level)
                entry, scale_losses = self._entries(pooled, scale, used)
                detail = self._detail(entry, scale, shape, grid, level)
                total, rest = total + detail, rest - detail
                if self.training and isinstance(self.codebook, Codebook) and bool(used.any()):
                    self.codebook.record(scale[used])
                    scale_losses = book_losses(x[used], total[used], _COMMITMENT)
                for name, loss in scale_losses.items():
                    losses.setdefault(name, []).append(loss)
            if isinstance(self.codebook, Codebook):
                total = straight_through(total, x)
            out = project(self.project_out, _to_tokens(total, len(features)))
        means = {name: torch.stack(values).mean() for name, values in losses.items()}
        return Quantized(out, codes.reshape(len(features), -1, len(self.pairs)), means)

    def lookup(self, codes: Tensor, grid: Grid) -> Tensor:
        """Returns the features of codes [B,N,Q]; a missing last scale counts as -1."""
        frames = codes.reshape(-1, grid.cells_per_frame, codes.shape[-1])
        with torch.autocast(codes.device.type, enabled=False):
            total = torch.zeros(len(frames), self.code_dim, grid.H, grid.W, device=codes.device)
            for level, shape in zip(range(codes.shape[-1]), self.shapes(grid), strict=False):
                scale = frames[:, : shape[0] * shape[1], level]
                total = total + self._detail(self.codebook.entries(scale), scale, shape, grid, level)
            return project(self.project_out, _to_tokens(total, len(codes)))

    def _num_scales(self, batch: int, device: torch.device) -> Tensor:
        """The number of scales that each video keeps, int64 [B]."""
        every = torch.full((batch,), len(self.pairs), device=device)
        if not self.training or self.dropout == 0:
            return every
        fewer = torch.randint(min(_MIN_SCALES, len(self.pairs)), len(self.pairs) + 1, (batch,), device=device)
        return torch.where(torch.rand(batch, device=device) < self.dropout, fewer, every)

    def _entries(self, pooled: Tensor, codes: Tensor, used: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """The entries [F,h*w,D] of codes [F,h*w], for attention with its gradient, and its losses in `used` frames."""
        if isinstance(self.codebook, Codebook) or not (self.training or torch.is_grad_enabled()):
            return self.codebook.entries(codes), {}
        entry, logits = self.codebook.attend(pooled, codes)
        if not self.training or not bool(used.any()):
            return entry, {}
        rows = [real_rows(value, None) for value in (pooled[used], entry[used], codes[used], logits[used])]
        return entry, self.codebook.losses(*rows)

    def _detail(self, entry: Tensor, codes: Tensor, shape: tuple[int, int], grid: Grid, level: int) -> Tensor:
        """What a scale adds to frames, [F,D,H,W]: its entries [F,h*w,D], enlarged and smoothed; 0 without codes."""
        x = entry.mT.unflatten(2, shape)
        if shape != (grid.H, grid.W):
            if grid.H == 1:
                x = F.interpolate(x[:, :, 0], grid.W, mode="linear")[:, :, None]
            else:
                x = F.interpolate(x, (grid.H, grid.W), mode="bicubic")
        if self.convolutions:
            x = (1 - _MIX) * x + _MIX * project(self.smoothing[self._convolution(level)], x)
        return x * (codes >= 0).any(1)[:, None, None, None]

    def _convolution(self, level: int) -> int:
        """The convolution of a scale: that with the nearest of even positions between the first and the last scale."""
        # VAR has wider margins for its four convolutions. Ties between two are broken by rounding errors, as there.
        margin = 1 / (3 if self.convolutions == 4 else 2) / self.convolutions
        positions = np.linspace(margin, 1 - margin, self.convolutions)
        return int(np.abs(positions - level / max(1, len(self.pairs) - 1)).argmin())


def _to_frames(x: Tensor, grid: Grid) -> Tensor:
    """Tokens [B,N,D] as frames [B*T,D,H,W]."""
    return x.reshape(-1, grid.cells_per_frame, x.shape[-1]).mT.unflatten(2, (grid.H, grid.W))


def _to_tokens(x: Tensor, batch: int) -> Tensor:
    """Frames [B*T,D,H,W] as tokens [B,N,D]."""
    return x.flatten(2).mT.reshape(batch, -1, x.shape[1])


def _pool(x: Tensor, shape: tuple[int, int]) -> Tensor:
    """Frames [F,D,H,W] averaged to h x w cells."""
    return x if x.shape[2:] == shape else F.interpolate(x, shape, mode="area")
