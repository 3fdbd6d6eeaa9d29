"""The convolutional encoder of sounds of EnCodec."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from fewtokens.tokenizers.parts import VideoEncoder


class Seanet(VideoEncoder):
    """Encodes samples by 1-D convolutions with strides, then an LSTM (SEANet, as in EnCodec, arXiv 2210.13438).

    Sounds are [B,S] in -1..1; a cell covers as many samples as the product of the strides. Convolutions pad at both
    ends, so it is not causal.

    Args:
        width: channels of a token.
        strides: stride of each level, of which the first is nearest to the samples.
        channels: channels before the first level; each level doubles them.
        lstm: layers of the LSTM, 0 for none.
    """

    def __init__(
        self, width: int = 512, *, strides: Sequence[int] = (2, 4, 5, 8), channels: int = 32, lstm: int = 2
    ) -> None:
        super().__init__()
        self.width, self.strides, self.channels, self.lstm = width, tuple(strides), channels, lstm
        self.stride = (math.prod(strides), 1, 1)
        layers: list[nn.Module] = [SameConv(1, channels, 7)]
        for level, stride in enumerate(strides):
            inner = channels * 2**level
            layers += [Residual(inner), nn.ELU(), SameConv(inner, 2 * inner, 2 * stride, stride)]
        inner = channels * 2 ** len(strides)
        self.down = nn.Sequential(*layers)
        self.memory = nn.LSTM(inner, inner, lstm, batch_first=True) if lstm else None
        self.head = nn.Sequential(nn.ELU(), SameConv(inner, width, 7))

    @property
    def dim(self) -> int:
        return self.width

    def latents(self, x: Tensor) -> Tensor:
        """Encodes samples [B,S] to [B,C,S/stride,1,1]."""
        x = self.down(x[:, None])
        if self.memory is not None:
            x = x + self.memory(x.mT)[0].mT
        latents: Tensor = self.head(x)
        return latents[..., None, None]


class SameConv(nn.Module):
    """A convolution whose output has the length of the input divided by the stride."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int = 1) -> None:
        super().__init__()
        total = kernel - stride
        self.padding = (total // 2, total - total // 2)
        self.conv = nn.utils.parametrizations.weight_norm(nn.Conv1d(inputs, outputs, kernel, stride))

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.conv(F.pad(x, self.padding))
        return y


class Residual(nn.Module):
    """Two convolutions with half of the channels between them, added to the input."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        half = max(1, channels // 2)
        self.layers = nn.Sequential(nn.ELU(), SameConv(channels, half, 3), nn.ELU(), SameConv(half, channels, 1))

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = x + self.layers(x)
        return y
