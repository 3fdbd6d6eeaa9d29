"""The encoder of Cosmos."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fewtokens.tokenizers.blocks.causal_conv import CausalConv3d, Chain, FactorizedConv3d, check_counts
from fewtokens.tokenizers.blocks.cosmos_levels import LEVELS, HybridDown, halvings, middle, res_block
from fewtokens.tokenizers.blocks.haar import haar
from fewtokens.tokenizers.blocks.residual import ConvNorm
from fewtokens.tokenizers.parts import VideoEncoder


class Cosmos(VideoEncoder):
    """Cosmos (arXiv 2501.03575): a Haar transform, then causal factorized convolutions and attention.

    The first frame is repeated 3 times in front, so that it alone is transformed to the first row. Attention over time
    looks back to the start, so videos are encoded whole or in windows.

    Args:
        channels: of a token: 6 for FSQ, 16 for continuous ones.
        width: channels behind the Haar transform.
        mult: factor of the channels of each level.
        stride: frames (4 or 8), rows and columns (8 or 16) of a cell.
        depth: residual blocks of a level.
        inner: channels from which a 1x1x1 convolution leads to the token.
    """

    causal = True
    first_frame = True

    def __init__(
        self,
        channels: int = 6,
        *,
        width: int = 128,
        mult: Sequence[int] = (2, 4, 4),
        stride: Sequence[int] = (4, 8, 8),
        depth: int = 2,
        inner: int = 16,
    ) -> None:
        super().__init__()
        check_counts(channels=channels, width=width, depth=depth, inner=inner)
        time, space = halvings(stride, len(mult))
        self.channels, self.width, self.mult, self.depth, self.inner = channels, width, tuple(mult), depth, inner
        self.stride = (stride[0], stride[1], stride[2])
        self.layers = Chain(FactorizedConv3d(3 * 8**LEVELS, width))
        dim = width
        for i, factor in enumerate(mult):
            self.layers.extend(res_block(dim if j == 0 else width * factor, width * factor) for j in range(depth))
            dim = width * factor
            if i < max(time, space):
                self.layers.append(HybridDown(dim, (1 + (i < time), 1 + (i < space), 1 + (i < space))))
        self.layers.extend(middle(dim))
        self.layers.extend([ConvNorm(dim, "frame", groups=1), FactorizedConv3d(dim, inner)])
        self.layers.append(CausalConv3d(inner, channels, (1, 1, 1)))

    @property
    def dim(self) -> int:
        return self.channels

    def latents(self, x: Tensor) -> Tensor:
        first = x[:, :, :1].expand(-1, -1, 2**LEVELS - 1, -1, -1)
        encoded: Tensor = self.layers(haar(torch.cat([first, x], 2), LEVELS))
        return encoded
