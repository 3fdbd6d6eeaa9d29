"""What an unknown encoder gives for a frame: which of its rows are cells, and that they lie where they are said to.

Nothing in a folder of transformers says it. So the encoder is asked: frames that differ in one cell alone must differ
most in the row of that cell, and a frame must give the same twice.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

# More prefix tokens than this no encoder has.
_MOST_PREFIX = 16
# Where cells are changed, in parts of a side: off the diagonal, so that rows and columns cannot be mistaken.
_PLACES = ((0.0, 0.99), (0.99, 0.3), (0.6, 0.1), (0.4, 0.8), (0.1, 0.5))
# A changed cell is among this share of the rows that change most, in all but one of the places. In trained networks a
# few tokens that hold what is global may change more than it.
_AMONG = 0.05


@torch.no_grad()
def find_cells(run: Callable[[Tensor], Tensor], size: int, patch: int = 0) -> tuple[int, int]:
    """How many rows come before the cells of a square frame, and how many cells a side has.

    Args:
        run: normalized frames [F,3,size,size] to hidden states [F,N,C] or [F,C,H,W].
        size: side of the frames in pixels.
        patch: side of a patch where it is known, to try that grid first; 0 where it is not.

    Raises:
        ValueError: no square of cells in raster order, or another result each time.
    """
    generator = torch.Generator().manual_seed(0)
    frame = 0.5 * torch.randn(1, 3, size, size, generator=generator)
    given, second = run(frame), run(frame)
    first, again, shape = _rows(given)[0], _rows(second)[0], given.shape[1:]
    if not (first.isfinite().all() and again.isfinite().all()):
        raise ValueError("a frame gives features that are not finite")
    if first.shape != again.shape or not torch.allclose(first, again, rtol=0.0, atol=0.02 * float(first.abs().max())):
        raise ValueError("the same frame gives other features each time (does it mask or drop patches at random?)")
    if len(shape) == 3 and shape[1] == shape[2] != shape[0]:
        return 0, shape[1]  # a map of channels first: its order is its shape
    tried = list(_candidates(shape, size, patch))
    for prefix, side in tried:
        if _in_place(run, frame, first, prefix, side):
            return prefix, side
    if not tried:
        raise ValueError(f"a frame gives features of {list(shape)}, which are no square grid of cells")
    raise ValueError(
        f"its {len(first)} rows for a frame are not its cells in raster order: a cell that is changed does not change "
        "its own row most"
    )


def _rows(hidden: Tensor) -> Tensor:
    """Hidden states as rows, float32 [F,N,C]."""
    return (hidden.flatten(2).transpose(1, 2) if hidden.ndim == 4 else hidden).float()


def _candidates(shape: Sequence[int], size: int, patch: int) -> Iterator[tuple[int, int]]:
    """Prefix and side that hidden states of a frame may have: [N,C] or [C,H,W]."""
    if len(shape) == 3:
        if shape[1] == shape[2]:
            yield 0, shape[1]
        return
    known = size // patch if patch else 0
    squares = [(prefix, math.isqrt(max(0, shape[0] - prefix))) for prefix in range(_MOST_PREFIX + 1)]
    # A single row is no grid: it is what a pooled output would look like.
    fitting = [(prefix, side) for prefix, side in squares if side > 1 and side**2 == shape[0] - prefix]
    yield from sorted(fitting, key=lambda each: each[1] != known)


def _in_place(run: Callable[[Tensor], Tensor], frame: Tensor, before: Tensor, prefix: int, side: int) -> bool:
    """Whether cells that are changed change their own rows most."""
    size, needed = frame.shape[3], len(_PLACES) - 1
    for number, place in enumerate(_PLACES):
        row, column = (int(part * side) for part in place)
        top, bottom, left, right = (round(edge * size / side) for edge in (row, row + 1, column, column + 1))
        changed = frame.clone()
        changed[..., top:bottom, left:right] = 2.0 * (-1) ** number - frame[..., top:bottom, left:right]
        moved = (_rows(run(changed))[0] - before)[prefix:].norm(dim=1)
        as_much = int((moved >= moved[row * side + column]).sum())
        needed -= bool(moved[row * side + column] > 0) and as_much <= 1 + int(_AMONG * side**2)
        if not needed:
            return True
    return False
