"""Finds which rows of an encoder's output are the cells of an image or a video, from their number and its shape.

Models return rows without a grid. Their number follows one of a few laws from the shape that the processor states:
frames x height x width in patches or pixels.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from math import isqrt, sqrt

import torch
from torch import Tensor

from fewtokens.core.grid import Grid
from fewtokens.core.plan import Plan
from fewtokens.core.shapes import shape_repr

Shape = tuple[int, int, int]


@dataclass(frozen=True)
class Tiles:
    """The tiles of an image, whose cells form one grid.

    Attributes:
        shape: (rows, columns) of the tiles.
        size: (rows, columns) of the cells of all tiles without the padding at both ends, before any interpolation.
    """

    shape: tuple[int, int]
    size: tuple[int, int]


@dataclass(frozen=True)
class RowLayout:
    """The order of the rows of an image or a video: its cells, and rows between them that are not cells.

    Attributes:
        grid: the cells, in raster order.
        group: the number of cells for each row that is not a cell: a newline after each grid row or at the end, or a
            class token of each frame. 0 if there are no such rows.
        leading: whether this row comes before its group of cells, otherwise after it.
        tiles: the tiles whose cells these are; None if the image is encoded as a whole.
        rest: the layout of the rows that follow, if an image has several grids.
    """

    grid: Grid
    group: int = 0
    leading: bool = False
    tiles: Tiles | None = None
    rest: RowLayout | None = None

    def __len__(self) -> int:
        return sum(each.grid.cells + (each.grid.cells // each.group if each.group else 0) for each in self.parts())

    def parts(self) -> list[RowLayout]:
        """The layout of each grid."""
        return [replace(self, rest=None), *([] if self.rest is None else self.rest.parts())]

    def cells(self, device: torch.device | None = None) -> Tensor:
        """The row of each cell, int64 [S]."""
        index = torch.arange(self.grid.cells, device=device)
        return index + torch.div(index, self.group, rounding_mode="floor") + self.leading if self.group else index

    def others(self, device: torch.device | None = None) -> Tensor:
        """The rows that are not cells, int64 [S/group], or [0]."""
        count = self.grid.cells // self.group if self.group else 0
        return torch.arange(count, device=device) * (self.group + 1) + (0 if self.leading else self.group)


@dataclass
class VisualFeatures:
    """One image or video of a prompt, as encoded; or one of several grids of an image.

    Attributes:
        kind: "image" or "video".
        features: [n,D], rows in the order of the placeholders.
        layout: which rows are cells; None if they form no grid.
        deepstack: additional rows [n,D] for early layers of the language model.
        pixels: [S,P,D], the pixels of each cell in 0..1 (the cue `pixels`); None if not requested.
        cues: cues of the vision tower by name, float32 [S,...]; those requested.
        part: the number of cells of the image before this grid, and in all its grids; None if it has only one.
        plans: what the first methods decided from the pixels before encoding, see `tower_patches`.
        encoded: bool [S], the cells that were encoded for these plans; None for all.
    """

    kind: str
    features: Tensor
    layout: RowLayout | None = None
    deepstack: list[Tensor] = field(default_factory=list)
    pixels: Tensor | None = None
    cues: dict[str, Tensor] = field(default_factory=dict)
    part: tuple[int, int] | None = None
    plans: list[Plan] = field(default_factory=list)
    encoded: Tensor | None = None

    __repr__ = shape_repr

    @property
    def grid(self) -> Grid | None:
        return None if self.layout is None else self.layout.grid

    def take(self, rows: Tensor) -> VisualFeatures:
        """Returns some of its rows, without their layout."""
        deepstack = [layer[rows] for layer in self.deepstack]
        return replace(self, features=self.features[rows], layout=None, deepstack=deepstack, pixels=None, cues={})


def split_grids(visual: VisualFeatures) -> list[VisualFeatures]:
    """Returns each grid of an image on its own; the visual itself if it has only one."""
    parts = [] if visual.layout is None else visual.layout.parts()
    if len(parts) < 2:
        return [visual]
    lengths, cells = [len(part) for part in parts], [part.grid.cells for part in parts]
    layers = [layer.split(lengths) for layer in visual.deepstack]
    return [
        replace(
            visual,
            features=features,
            layout=layout,
            deepstack=[layer[index] for layer in layers],
            part=(sum(cells[:index]), sum(cells)),
        )
        for index, (features, layout) in enumerate(zip(visual.features.split(lengths), parts, strict=True))
    ]


def row_layout(rows: int, shape: Shape, merge: int | None, *, leading: bool = False) -> RowLayout | None:
    """Returns the layout of `rows` rows that follows from the shape of an image or a video; None if there is none.

    The laws, in this order: all cells; time averaged over pairs of frames or over all of them; a newline after each row
    of cells; one row for the whole video; one row for each frame.

    Args:
        shape: (frames, height, width) in patches, or in pixels if `merge` is None.
        merge: the number of patches merged along each side; None to derive it from the number of rows.
        leading: whether the row of a frame comes before its cells.
    """
    t, h, w = shape
    # Where the number of cells of a frame is derived, a fraction of the frames would also fit other laws.
    times = [t] if merge is None else [t, *([t // 2] if t % 2 == 0 else []), 1]
    for T in dict.fromkeys(times):
        for H, W in _sides(rows, T, (h, w), merge):
            return RowLayout(Grid(T, H, W))
    if merge is not None and rows == t * (h // merge) * (w // merge + 1):
        return RowLayout(Grid(t, h // merge, w // merge), group=w // merge)
    if not leading:
        for H, W in _sides(rows - 1, t, (h, w), merge):
            return RowLayout(Grid(t, H, W), group=t * H * W)
    for H, W in _sides(rows - t, t, (h, w), merge):
        return RowLayout(Grid(t, H, W), group=H * W, leading=leading)
    return None


def _sides(rows: int, frames: int, size: tuple[int, int], merge: int | None) -> Iterator[tuple[int, int]]:
    """Yields the height and width in cells of `frames` frames that have `rows` rows, if there are any."""
    h, w = size
    if rows <= 0 or rows % frames:
        return
    if merge is not None:
        if rows == frames * (h // merge) * (w // merge):
            yield h // merge, w // merge
        return
    cells = rows // frames
    H = isqrt(cells * h // w)
    # The aspect ratio of the pixels.
    if H and cells % H == 0 and H * w == cells // H * h:
        yield H, cells // H


def tiled_layout(
    size: tuple[int, int], sizes: Sequence[tuple[int, int]], tile: int, side: int, limit: int | None = None
) -> RowLayout:
    """Returns the layout of an image of any resolution, as in LLaVA-NeXT: a small version of it, then all its tiles.

    The tiles form one grid without the padding of the image, with a newline after each row of cells.

    Args:
        size: (height, width) of the image in pixels.
        sizes: the sizes in pixels that tiles can fill.
        tile: the side of a tile in pixels.
        side: the number of cells along a side of a tile.
        limit: the number of tiles beyond which the cells of the tiles are interpolated to fewer; None for no limit.
    """
    height, width = size

    def fit(target: tuple[int, int]) -> tuple[int, int]:
        """The number of pixels of the image that fit into a size, and the negative number of the others."""
        scale = min(target[1] / width, target[0] / height)
        used = min(int(width * scale) * int(height * scale), width * height)
        return used, used - target[0] * target[1]

    best = max(sizes, key=fit)
    rows, columns = (length // tile for length in best)
    H, W = rows * side, columns * side
    if width / height > W / H:
        H -= (H - int(round(height * (W / width), 7))) // 2 * 2
    else:
        W -= (W - int(round(width * (H / height), 7))) // 2 * 2
    tiles = Tiles((rows, columns), (H, W))
    if limit is not None and (ratio := sqrt(H * W / (limit * side**2))) > 1.1:
        H, W = int(H // ratio), int(W // ratio)
    return RowLayout(Grid(1, side, side), rest=RowLayout(Grid(1, H, W), group=W, tiles=tiles))


def join_layouts(layouts: Sequence[RowLayout | None]) -> RowLayout | None:
    """Returns the layout of images or parts of a video in a row; None if their frames differ, or are in tiles."""
    first = layouts[0]
    if first is None or len(layouts) == 1:
        return first
    sizes = {(each.grid.H, each.grid.W, each.group, each.leading) if each else None for each in layouts}
    if len(sizes) > 1 or first.rest is not None:
        return None
    return replace(first, grid=Grid(sum(each.grid.T for each in layouts if each), first.grid.H, first.grid.W))
