"""The grid of source cells that an encoder makes of a video."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Grid:
    """The cells that an encoder makes of one video: T frames of H rows and W columns.

    Args:
        T, H, W: counts, each at least 1.
        times: seconds at which each frame is shown, float64 [T], or [B,T] for videos of a batch, or None.
        lengths: int64 [B], how many of the T frames are real where videos of unequal length share a batch;
            None means all of them. Frames past a video's length have no tokens.
    """

    T: int
    H: int
    W: int
    times: Tensor | None = None
    lengths: Tensor | None = None

    def __post_init__(self) -> None:
        if min(self.T, self.H, self.W) < 1:
            raise ValueError(f"a grid needs at least one cell along each axis, got {self.T}x{self.H}x{self.W}")
        if self.times is not None:
            if self.times.shape[-1] != self.T or self.times.ndim > 2:
                raise ValueError(f"times must be [T] or [B,T] with T={self.T}, got {list(self.times.shape)}")
            object.__setattr__(self, "times", self.times.detach().to("cpu", torch.float64))
        if self.lengths is not None:
            lengths = self.lengths.detach().to("cpu", torch.int64)
            if lengths.ndim != 1 or not len(lengths) or lengths.min() < 1 or lengths.max() > self.T:
                raise ValueError(f"lengths must be [B] with values of 1 to T={self.T}, got {lengths.tolist()}")
            object.__setattr__(self, "lengths", lengths)

    @property
    def cells_per_frame(self) -> int:
        return self.H * self.W

    @property
    def cells(self) -> int:
        """S, the number of source cells of one video (frames past its length included)."""
        return self.T * self.H * self.W

    @property
    def frame(self) -> Grid:
        """The grid of one frame, without times."""
        return Grid(1, self.H, self.W)

    @property
    def shape(self) -> tuple[int, int, int]:
        return self.T, self.H, self.W

    def videos(self, batch: int) -> list[Grid]:
        """One grid for each of `batch` videos, each with its own length and times."""
        lengths = [self.T] * batch if self.lengths is None else self.lengths.tolist()
        if len(lengths) != batch:
            raise ValueError(f"the grid describes {len(lengths)} videos, asked for {batch}")
        if self.times is not None and self.times.ndim == 2 and len(self.times) != batch:
            raise ValueError(f"the grid has times of {len(self.times)} videos, asked for {batch}")
        grids = []
        for b, length in enumerate(lengths):
            times = self.times if self.times is None or self.times.ndim == 1 else self.times[b]
            grids.append(Grid(length, self.H, self.W, None if times is None else times[:length]))
        return grids

    def positions(self, device: torch.device | str | None = None) -> Tensor:
        """(t, y, x) of every cell in raster order, float32 [S,3]."""
        axes = [torch.arange(n, device=device, dtype=torch.float32) for n in self.shape]
        return torch.cartesian_prod(*axes).reshape(self.cells, 3)

    def exists(self, batch: int, device: torch.device | str | None = None) -> Tensor:
        """Which cells belong to a real frame, bool [B,S]."""
        if self.lengths is None:
            return torch.ones(batch, self.cells, dtype=torch.bool, device=device)
        frame = torch.arange(self.cells, device=device) // self.cells_per_frame
        return frame[None] < self.lengths.to(frame.device)[:, None]

    def select(self, index: Tensor) -> Grid:
        """The grid of the videos with these numbers, int64 [B']."""
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
