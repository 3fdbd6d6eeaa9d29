"""What the encoder and decoder of Cosmos (arXiv 2501.03575) agree on."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from fewtokens.tokenizers.blocks.causal_conv import Cache, CausalConv3d, Kernel, Three, with_past
from fewtokens.tokenizers.blocks.cell_attention import CellAttention
from fewtokens.tokenizers.blocks.pooling import mean_pool3d
from fewtokens.tokenizers.blocks.residual import ResBlock

# Of the Haar transform: each halves frames, rows and columns.
LEVELS = 2
_KERNELS: tuple[Kernel, ...] = ("factorized", "factorized")


def res_block(dim: int, out: int) -> ResBlock:
    """A residual block of factorized convolutions, normalized over all channels of a frame."""
    return ResBlock(dim, out, _KERNELS, norm="frame", groups=1)


def middle(dim: int) -> list[nn.Module]:
    """Two residual blocks with attention between them."""
    attention = [CellAttention(dim, over, norm="frame", groups=1) for over in ("frame", "past")]
    return [res_block(dim, dim), *attention, res_block(dim, dim)]


def halvings(stride: Sequence[int], levels: int) -> tuple[int, int]:
    """Returns how often frames, and rows and columns, are halved behind the Haar transform.

    Raises:
        ValueError: the stride is not a power of two, or there are too few levels.
    """
    counts = {2 ** (LEVELS + n): n for n in range(levels)}
    if len(stride) != 3 or stride[1] != stride[2] or not set(stride) <= counts.keys() or stride[0] > stride[1]:
        raise ValueError(
            f"stride must be frames, rows and columns of {', '.join(map(str, counts))}, rows and columns equal and not "
            f"below frames, with {levels} levels; got {tuple(stride)}"
        )
    return counts[stride[0]], counts[stride[1]]


class HybridDown(nn.Module):
    """Halves rows and columns, then frames: the sum of a convolution and of means.

    Args:
        dim: channels.
        factor: of frames, rows and columns, 1 or 2.
    """

    def __init__(self, dim: int, factor: Three) -> None:
        super().__init__()
        self.space = CausalConv3d(dim, dim, (1, 3, 3), stride=(1, 2, 2)) if factor[1] > 1 else None
        self.time = CausalConv3d(dim, dim, (3, 1, 1), stride=(2, 1, 1)) if factor[0] > 1 else None
        self.out = CausalConv3d(dim, dim, (1, 1, 1))

    def forward(self, x: Tensor, cache: Cache | None = None) -> Tensor:
        if self.space is not None:
            x = self.space(x, cache) + mean_pool3d(x, (1, 2, 2))
        if self.time is not None:
            x = self.time(x, cache) + mean_pool3d(with_past(self, x, 1, 2, 2, cache), (2, 1, 1))
        halved: Tensor = self.out(x, cache)
        return halved


class HybridUp(nn.Module):
    """Doubles frames, then rows and columns: cells are repeated, and a convolution of them is added.

    Args:
        dim: channels.
        factor: of frames, rows and columns, 1 or 2. The first frame remains one.
    """

    def __init__(self, dim: int, factor: Three) -> None:
        super().__init__()
        self.time = CausalConv3d(dim, dim, (3, 1, 1)) if factor[0] > 1 else None
        self.space = CausalConv3d(dim, dim, (1, 3, 3)) if factor[1] > 1 else None
        self.out = CausalConv3d(dim, dim, (1, 1, 1))

    def forward(self, x: Tensor, cache: Cache | None = None) -> Tensor:
        if self.time is not None:
            start = cache is None or self.time not in cache
            x = x.repeat_interleave(2, 2)[:, :, int(start) :]
            x = x + self.time(x, cache)
        if self.space is not None:
            x = x.repeat_interleave(2, 3).repeat_interleave(2, 4)
            x = x + self.space(x, cache)
        doubled: Tensor = self.out(x, cache)
        return doubled
