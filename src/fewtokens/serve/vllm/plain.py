"""What models whose positions are a count of the columns share: only the rows and their number change."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from fewtokens.core.cell_pixels import cell_pixels, to_unit_pixels
from fewtokens.core.grid import Grid
from fewtokens.serve.contract import reduce, served_pipeline
from fewtokens.serve.vllm.settings import normalization, spec_of


def square_grid(frames: int, cells: int) -> Grid:
    """The grid of a video whose frames are squares of cells."""
    side = math.isqrt(cells // frames)
    if frames * side * side != cells:
        raise ValueError(f"{cells} rows of {frames} frames do not form squares")
    return Grid(frames, side, side)


class FewTokensPlain:
    """A mixin, before a model in the bases of a class."""

    # Rows after the cells of a video that are not cells and are kept, such as a newline.
    tail = 0
    spec: str | None

    def __init__(self, *, vllm_config: Any, prefix: str = "") -> None:
        super().__init__(vllm_config=vllm_config, prefix=prefix)  # type: ignore[call-arg]
        self.fewtokens_config = vllm_config.model_config
        self.spec = spec_of(vllm_config.model_config)
        if self.spec is not None:
            # The engine plans batches of the encoder by the number of reduced rows, which puts more videos into one.
            self.requires_sequential_video_encoding = True

    def normalization(self) -> tuple[list[float], list[float]]:
        """The mean and the standard deviation of the frames before they were normalized."""
        return normalization(self.fewtokens_config)

    def reduce_video(self, rows: Tensor, frames: Tensor) -> Tensor:
        """Reduces the rows [...,n,D] of one video of normalized frames [T,3,H,W] to [K,D]."""
        assert self.spec is not None
        rows = rows.reshape(-1, rows.shape[-1])
        cells = len(rows) - self.tail
        grid = square_grid(len(frames), cells)
        pixels = None
        if "pixels" in served_pipeline(self.spec).needs:
            frames = frames.float() if frames.is_floating_point() else frames
            pixels = cell_pixels(to_unit_pixels(frames, *self.normalization()), grid)
        return torch.cat([reduce(self.spec, rows[:cells], grid, pixels=pixels).rows, rows[cells:]])
