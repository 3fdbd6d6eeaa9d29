"""The grid of cells that an encoder divides a video into."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Grid:
    """The grid of cells of one video, or of each video of a batch: T frames of H rows and W columns.

        grid = Grid(16, 14, 14)
        grid.cells  # 3136

    Args:
        T: number of frames (or tubelets), at least 1.
        H: number of rows, at least 1.
        W: number of columns, at least 1.
        times: seconds at which each frame is shown, [T], or [B,T] for the videos of a batch; None if unknown. Stored
            as float64 on the CPU.
        lengths: number of real frames of each video in a padded batch, [B], values in 1..T; None if all T are real.
            Frames past a video's length have no tokens. Stored as int64 on the CPU.

    Raises:
        ValueError: a count is below 1, or `times` or `lengths` do not fit T.
    """

    T: int
    H: int
    W: int
    times: Tensor | None = None
    lengths: Tensor | None = None

    def __post_init__(self) -> None:
        if min(self.T, self.H, self.W) < 1:
            raise ValueError(f"T, H and W must be at least 1, got {self.T}x{self.H}x{self.W}")
        if self.times is not None:
            if self.times.shape[-1] != self.T or self.times.ndim > 2:
                raise ValueError(f"times must be [T] or [B,T] with T={self.T}, got {list(self.times.shape)}")
            object.__setattr__(self, "times", self.times.detach().to("cpu", torch.float64))
        if self.lengths is not None:
            lengths = self.lengths.detach().to("cpu", torch.int64)
            if lengths.ndim != 1 or bool(((lengths < 1) | (lengths > self.T)).any()):
                raise ValueError(f"lengths must be [B] with values in 1..{self.T}, got {lengths.tolist()}")
            object.__setattr__(self, "lengths", lengths)

    @property
    def cells_per_frame(self) -> int:
        """The number of cells of one frame, H*W."""
        return self.H * self.W

    @property
    def cells(self) -> int:
        """The number of cells of one video, S = T*H*W; includes frames past its length."""
        return self.T * self.H * self.W

    @property
    def frame(self) -> Grid:
        """The grid of one frame, without times."""
        return Grid(1, self.H, self.W)

    @property
    def shape(self) -> tuple[int, int, int]:
        """(T, H, W)."""
        return self.T, self.H, self.W

    def videos(self, batch: int) -> list[Grid]:
        """Returns the grid of each of the `batch` videos, with its own length and times.

        Raises:
            ValueError: `lengths` or `times` describe another number of videos.
        """
        lengths = [self.T] * batch if self.lengths is None else self.lengths.tolist()
        if len(lengths) != batch:
            raise ValueError(f"the grid has lengths of {len(lengths)} videos, the batch has {batch}")
        if self.times is not None and self.times.ndim == 2 and len(self.times) != batch:
            raise ValueError(f"the grid has times of {len(self.times)} videos, the batch has {batch}")
        grids = []
        for b, length in enumerate(lengths):
            times = self.times if self.times is None or self.times.ndim == 1 else self.times[b]
            grids.append(Grid(length, self.H, self.W, None if times is None else times[:length]))
        return grids

    def positions(self, device: torch.device | str | None = None) -> Tensor:
        """Returns (t,y,x) of each cell in raster order, float32 [S,3]."""
        axes = [torch.arange(n, device=device, dtype=torch.float32) for n in self.shape]
        return torch.cartesian_prod(*axes).reshape(self.cells, 3)

    def cell_mask(self, batch: int, device: torch.device | str | None = None) -> Tensor:
        """Returns whether each cell is in a real frame, bool [B,S]."""
        if self.lengths is None:
            return torch.ones(batch, self.cells, dtype=torch.bool, device=device)
        frame = torch.arange(self.cells, device=device) // self.cells_per_frame
        return frame[None] < self.lengths.to(frame.device)[:, None]

    def select(self, index: Tensor) -> Grid:
        """Returns the grid of the videos at `index`, int64 [B']."""
        index = index.cpu()
        times = self.times if self.times is None or self.times.ndim == 1 else self.times[index]
        return replace(self, times=times, lengths=None if self.lengths is None else self.lengths[index])

    def __repr__(self) -> str:
        seconds = "" if self.times is None else f", times={list(self.times.shape)}"
        lengths = "" if self.lengths is None else f", lengths={self.lengths.tolist()}"
        return f"Grid({self.T} x {self.H} x {self.W}{seconds}{lengths})"

    def __eq__(self, other: object) -> bool:
        def same(a: Tensor | None, b: Tensor | None) -> bool:
            return a is b or (a is not None and b is not None and torch.equal(a, b))

        return (
            isinstance(other, Grid)
            and self.shape == other.shape
            and same(self.times, other.times)
            and same(self.lengths, other.lengths)
        )

    __hash__ = None  # type: ignore[assignment]
