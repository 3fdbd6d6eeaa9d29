"""What the small causal encoder and decoder of convolutions agree on."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

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


def to_blocks(x: Tensor) -> Tensor:
    """Pixels [B,3,T,H,W] as cells [B,3*PATCH**2,T,H/PATCH,W/PATCH], in the order of `torch.nn.PixelUnshuffle`."""
    blocks = x.unflatten(4, (-1, PATCH)).unflatten(3, (-1, PATCH))
    return blocks.permute(0, 1, 4, 6, 2, 3, 5).flatten(1, 3)


def from_blocks(cells: Tensor) -> Tensor:
    """The inverse of `to_blocks`."""
    blocks = cells.unflatten(1, (-1, PATCH, PATCH))
    return blocks.permute(0, 1, 4, 5, 2, 6, 3).flatten(5, 6).flatten(3, 4)
