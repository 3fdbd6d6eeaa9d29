"""The decoder of Cosmos."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from fewtokens.tokenizers.blocks.causal_conv import CausalConv3d, Chain, FactorizedConv3d, check_counts
from fewtokens.tokenizers.blocks.cosmos_levels import LEVELS, HybridUp, halvings, middle, res_block
from fewtokens.tokenizers.blocks.haar import inverse_haar
from fewtokens.tokenizers.blocks.residual import ConvNorm
from fewtokens.tokenizers.parts import GridDecoder


class Cosmos(GridDecoder):
    """Cosmos (arXiv 2501.03575): the mirror image of the encoder `cosmos`, with the inverse Haar transform at the end.

    No frame depends on later cells.

    Args:
        dim: channels of a token.
        width, mult, stride, inner: as in the encoder.
        depth: of the encoder; a level has one residual block more.
    """

    causal = True
    first_frame = True

    def __init__(
        self,
        dim: int = 6,
        *,
        width: int = 128,
        mult: Sequence[int] = (2, 4, 4),
        stride: Sequence[int] = (4, 8, 8),
        depth: int = 2,
        inner: int = 16,
    ) -> None:
        super().__init__()
        check_counts(dim=dim, width=width, depth=depth, inner=inner)
        time, space = halvings(stride, len(mult))
        self.dim, self.width, self.mult, self.depth, self.inner = dim, width, tuple(mult), depth, inner
        self.stride = (stride[0], stride[1], stride[2])
        wide = width * mult[-1]
        self.layers = Chain(CausalConv3d(dim, inner, (1, 1, 1)), FactorizedConv3d(inner, wide), *middle(wide))
        for i, factor in enumerate(reversed(mult)):
            self.layers.extend(res_block(wide if j == 0 else width * factor, width * factor) for j in range(depth + 1))
            wide = width * factor
            # As in the released models, frames are doubled from the second level on, and rows and columns with them.
            in_time = 0 < i <= time
            in_space = in_time or (i < space and space > time)
            if in_time or in_space:
                self.layers.append(HybridUp(wide, (1 + in_time, 1 + in_space, 1 + in_space)))
        self.layers.extend([ConvNorm(wide, "frame", groups=1), FactorizedConv3d(wide, 3 * 8**LEVELS)])

    def pixels_of(self, latents: Tensor) -> Tensor:
        return inverse_haar(self.layers(latents), LEVELS)[:, :, 2**LEVELS - 1 :]
