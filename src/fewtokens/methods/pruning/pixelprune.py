"""PixelPrune: drops patches that their neighbors predict, before the encoder."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from fewtokens.core.method import Reducer
from fewtokens.core.plan import Plan, take_rows
from fewtokens.core.tokens import Tokens


class PixelPrune(Reducer):
    """Drops cells of a frame whose pixels are those of a neighbor, by predictive coding in two dimensions.

    PixelPrune, for documents and screens. A cell is predicted from the cell to its left (A) or above (B): from B if the
    cell above A (C) resembles A but not B, as at a horizontal edge, otherwise from A; in the first row from A, in the
    first column from B. It is dropped if the largest difference of a pixel value to the prediction is at most tau, and
    assigned to the token that predicts it, so that `Tokens.unmerge` of the pixels returns them within tau. Dropped
    cells predict by the values of their token, so that small differences do not add up. The first cell of each frame
    is always kept.

    Compression noise makes equal areas differ: with tau=0 hardly a cell of a JPEG image or a video is dropped. The
    count depends on the pixels. Frames are independent; for changes over time see `rlt`.

    Args:
        tau: threshold, at least 0, on pixels in 0..1. Default: 0, as published.
    """

    stage = "pixels"
    full_grid = True
    paper = "PixelPrune, OPPO-Mente-Lab/PixelPrune; vLLM pull request 45106"
    license = "written from the description; reference code Apache-2.0"
    cost = "O(pixels), in H + W - 1 steps; all at once with tau=0"

    def __init__(self, tau: float = 0.0) -> None:
        super().__init__()
        if tau < 0:
            raise ValueError(f"tau must be at least 0, got {tau}")
        self.tau = float(tau)

    @property
    def needs(self) -> tuple[str, ...]:
        return ("pixels",)

    @property
    def causal(self) -> bool:
        return True

    def step(self, tokens: Tokens, state: Any = None, **cues: Any) -> tuple[Tokens, Any]:
        return self(tokens, **cues), None

    def plan(self, tokens: Tokens, *, pixels: Tensor) -> Plan:
        T, H, W = tokens.grid.shape
        values = pixels.flatten(2).unflatten(1, (T, H * W)).flatten(0, 1)  # [B*T,H*W,D]
        with torch.no_grad():
            sources = self._sources(values, H, W) if self.tau else _equal_sources(values, H, W)
            source = sources.unflatten(0, (tokens.B, T))
            first = torch.arange(T, device=source.device)[:, None] * H * W
            source = (source + first).flatten(1)
            own = torch.arange(tokens.N, device=source.device)
            kept = Plan.keep((source == own) & tokens.mask)
            assert kept.dest is not None
            dest = kept.dest.gather(1, source).masked_fill(~tokens.mask, -1)
        return Plan(kept.count, kept.num_slots, dest, kept.representative)

    def _sources(self, values: Tensor, H: int, W: int) -> Tensor:
        """The cell whose values stand for each cell of frames [R,H*W,D], int64 [R,H*W]; a kept cell is its own."""
        source = torch.arange(H * W, device=values.device).repeat(len(values), 1)
        # Cells on a diagonal depend on the two diagonals before it only.
        for diagonal in range(1, H + W - 1):
            y = torch.arange(max(0, diagonal - W + 1), min(H, diagonal + 1), device=values.device)
            x = diagonal - y
            left = source[:, y * W + (x - 1).clamp(min=0)]
            above = source[:, (y - 1).clamp(min=0) * W + x]
            corner = source[:, (y - 1).clamp(min=0) * W + (x - 1).clamp(min=0)]
            a, b, c = (take_rows(values, index) for index in (left, above, corner))
            edge = self._close(c, a) & ~self._close(c, b)
            from_above = (edge & (y > 0)) | (x == 0)
            predicted = torch.where(from_above, above, left)
            prediction = torch.where(from_above[..., None], b, a)
            cell = y * W + x
            source[:, cell] = torch.where(self._close(values[:, cell], prediction), predicted, cell)
        return source

    def _close(self, a: Tensor, b: Tensor) -> Tensor:
        return (a - b).abs().amax(-1) <= self.tau


def _equal_sources(values: Tensor, H: int, W: int) -> Tensor:
    """`PixelPrune._sources` for tau = 0: a dropped cell equals its token, so all cells are decided at once."""
    v = values.unflatten(1, (H, W))
    # Whether a cell equals the one to its left, and the one above it; False at the edge.
    as_left = F.pad((v[:, :, 1:] == v[:, :, :-1]).all(-1), (1, 0))
    as_above = F.pad((v[:, 1:] == v[:, :-1]).all(-1), (0, 0, 1, 0))
    # In the first row nothing is above, and in the first column nothing else is.
    from_above = F.pad(as_above[:, 1:, :-1] & ~as_left[:, :-1, 1:], (1, 0, 1, 0))
    from_above[:, :, 0] = True
    dropped = torch.where(from_above, as_above, as_left).flatten(1)
    cell = torch.arange(H * W, device=values.device)
    source = torch.where(dropped, cell - torch.where(from_above.flatten(1), W, 1), cell)
    for _ in range((H + W).bit_length()):  # follows chains of cells, of doubled length each time
        source = source.gather(1, source)
    return source
