"""What the small causal encoder and decoder of convolutions agree on."""

from __future__ import annotations

from collections.abc import Sequence

from fewtokens.tokenizers.blocks.causal_conv import Three

# Rows and columns of the blocks of pixels that become channels.
PATCH = 4
# Of the convolutions of a residual block: in space, then in time.
RES_KERNELS: tuple[Three, ...] = ((1, 3, 3), (3, 1, 1))


def small_strides(stride: Sequence[int]) -> list[Three]:
    """Returns the strides of the levels, each 1 or 2 in time and space, whose product is that of a cell of blocks.

    Raises:
        ValueError: the stride is not a product of such levels.
    """
    sizes = tuple(stride)
    options: dict[tuple[int, ...], tuple[int, int]] = {
        (2**t, PATCH * 2**s, PATCH * 2**s): (t, s) for t in range(4) for s in range(4) if t + s > 0
    }
    if sizes not in options:
        raise ValueError(
            f"stride must be 1, 2, 4 or 8 frames and 4, 8, 16 or 32 rows and columns, more than (1, 4, 4); got {sizes}"
        )
    time, space = options[sizes]
    return [(1 + (i < time), 1 + (i < space), 1 + (i < space)) for i in range(max(time, space))]
