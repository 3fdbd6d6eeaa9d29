"""Strides of the levels of a convolutional network, and the residual blocks of a level."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from fewtokens.tokenizers.blocks.causal_conv import Three
from fewtokens.tokenizers.blocks.residual import ResBlock


def level_strides(strides: Sequence[Sequence[int]], levels: int) -> tuple[list[Three], Three]:
    """Returns the strides between levels, and the frames, rows and columns of a cell, which are their product.

    Raises:
        ValueError: not one for each pair of neighboring levels.
    """
    if len(strides) != levels - 1 or any(len(stride) != 3 or min(stride) < 1 for stride in strides):
        raise ValueError(f"strides must be {levels - 1} triples, one less than levels, got {strides}")
    triples: list[Three] = [(t, y, x) for t, y, x in strides]
    t, y, x = (math.prod(stride[axis] for stride in triples) for axis in range(3))
    return triples, (t, y, x)


def residual_blocks(dim: int, out: int, count: int, *, kernel: Three = (3, 3, 3), **options: Any) -> list[ResBlock]:
    """Residual blocks of two convolutions; the first changes the number of channels. Options: of `ResBlock`."""
    return [ResBlock(dim if i == 0 else out, out, (kernel, kernel), **options) for i in range(count)]


def kernel_of(stride: Three) -> Three:
    """The kernel of convolutions with cells of this stride: 3x3x3, or 1x3x3 if no cell has several frames."""
    return (3, 3, 3) if stride[0] > 1 else (1, 3, 3)
