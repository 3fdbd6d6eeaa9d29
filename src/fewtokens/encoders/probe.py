"""Probes an unknown encoder: finds which rows of its output are cells and checks that they are in raster order.

The config of a transformers model does not specify this. Two frames that differ in one cell must differ most in the
output row of that cell, and the same frame must produce the same output twice.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

# Maximum number of prefix tokens.
_MAX_PREFIX = 16
# Positions of the changed cells, as fractions of a side; off the diagonal, so that swapped axes are detected.
_POSITIONS = ((0.0, 0.99), (0.99, 0.3), (0.6, 0.1), (0.4, 0.8), (0.1, 0.5))
# A changed cell must be in this fraction of the rows that change most, at all but one of the positions. In trained
# networks a few tokens that store global information may change more.
_TOP_FRACTION = 0.05


@torch.no_grad()
def find_cells(run: Callable[[Tensor], Tensor], size: int, patch: int = 0) -> tuple[int, int]:
    """Finds the number of rows before the cells of a square frame, and the number of cells per side.

    Args:
        run: maps normalized frames [F,3,size,size] to hidden states [F,N,C] or [F,C,H,W].
        size: side of the frames in pixels.
        patch: side of a patch in pixels if known, to try that grid first; otherwise 0.

    Returns:
        The number of prefix rows, and of cells per side.

    Raises:
        ValueError: the output is not a square grid of cells in raster order, or is not deterministic.
    """
    generator = torch.Generator().manual_seed(0)
    frame = 0.5 * torch.randn(1, 3, size, size, generator=generator)
    hidden, repeat = run(frame), run(frame)
    first, second, shape = _rows(hidden)[0], _rows(repeat)[0], hidden.shape[1:]
    if not (first.isfinite().all() and second.isfinite().all()):
        raise ValueError("the features of a frame are not finite")
    if first.shape != second.shape or not torch.allclose(first, second, rtol=0.0, atol=0.02 * float(first.abs().max())):
        raise ValueError(
            "the features of the same frame differ between calls (does it mask or drop patches at random?)"
        )
    if len(shape) == 3 and shape[1] == shape[2] != shape[0]:
        return 0, shape[1]  # a channels-first map is in raster order by its shape
    candidates = list(_candidates(shape, size, patch))
    for prefix, side in candidates:
        if _in_raster_order(run, frame, first, prefix, side):
            return prefix, side
    if not candidates:
        raise ValueError(f"the features of a frame, {list(shape)}, are not a square grid of cells")
    raise ValueError(
        f"the {len(first)} rows of a frame are not cells in raster order: changing a cell does not change its own row "
        "most"
    )


def _rows(hidden: Tensor) -> Tensor:
    """Flattens hidden states to rows, float32 [F,N,C]."""
    return (hidden.flatten(2).transpose(1, 2) if hidden.ndim == 4 else hidden).float()


def _candidates(shape: Sequence[int], size: int, patch: int) -> Iterator[tuple[int, int]]:
    """Yields possible (prefix, side) pairs for hidden states of a frame, [N,C] or [C,H,W]."""
    if len(shape) == 3:
        if shape[1] == shape[2]:
            yield 0, shape[1]
        return
    expected = size // patch if patch else 0
    squares = [(prefix, math.isqrt(max(0, shape[0] - prefix))) for prefix in range(_MAX_PREFIX + 1)]
    # A single row is not a grid: it could be a pooled output.
    fitting = [(prefix, side) for prefix, side in squares if side > 1 and side**2 == shape[0] - prefix]
    yield from sorted(fitting, key=lambda pair: pair[1] != expected)


def _in_raster_order(run: Callable[[Tensor], Tensor], frame: Tensor, before: Tensor, prefix: int, side: int) -> bool:
    """Whether changing a cell changes its own row most."""
    size, remaining = frame.shape[3], len(_POSITIONS) - 1
    for index, position in enumerate(_POSITIONS):
        row, column = (int(fraction * side) for fraction in position)
        top, bottom, left, right = (round(edge * size / side) for edge in (row, row + 1, column, column + 1))
        changed = frame.clone()
        changed[..., top:bottom, left:right] = 2.0 * (-1) ** index - frame[..., top:bottom, left:right]
        change = (_rows(run(changed))[0] - before)[prefix:].norm(dim=1)
        rank = int((change >= change[row * side + column]).sum())
        remaining -= bool(change[row * side + column] > 0) and rank <= 1 + int(_TOP_FRACTION * side**2)
        if not remaining:
            return True
    return False
