"""Two encoders of a frame side by side: a pretrained one for what it means, convolutions for how it looks."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from fewtokens.tokenizers.blocks.conv_up import ConvDown
from fewtokens.tokenizers.encoders.frozen import Frozen
from fewtokens.tokenizers.parts import VideoEncoder


class SemanticPixels(VideoEncoder):
    """Concatenates, in channels, projected features of a pretrained ViT and those of a convolutional encoder.

    TokenFlow (arXiv 2412.03069). Both networks are trained, the ViT from its weights.

    Args:
        network: the ViT, see the encoder `frozen`.
        layer: the layer that is read, see there.
        semantic, detail: channels of the two parts.
        widths: channels of the levels of the convolutions, from the largest to the smallest image;
            2^(number - 1) pixels are the side of a cell, to which the patches of the ViT are resized.
        blocks: residual blocks of a level.
    """

    causal = True

    def __init__(
        self,
        network: str = "random",
        *,
        layer: int = -1,
        semantic: int = 32,
        detail: int = 8,
        widths: Sequence[int] = (128, 128, 256, 256, 512),
        blocks: int = 2,
    ) -> None:
        super().__init__()
        if min(semantic, detail) < 1:
            raise ValueError(f"semantic and detail must be at least 1, got {semantic} and {detail}")
        side = 2 ** (len(widths) - 1)
        self.network, self.layer, self.semantic, self.detail = network, layer, semantic, detail
        self.widths, self.blocks, self.stride = tuple(widths), blocks, (1, side, side)
        self.vit = Frozen(network, layers=(layer,), stride=self.stride, trainable=True)
        width = self.vit.dim
        self.project = nn.Sequential(nn.Linear(width, width), nn.Tanh(), nn.Linear(width, semantic))
        self.convolutions = ConvDown(detail, widths, blocks)

    @property
    def dim(self) -> int:
        return self.semantic + self.detail

    def latents(self, x: Tensor) -> Tensor:
        semantic = self.project(self.vit.latents(x).movedim(1, -1)).movedim(-1, 1)
        images = self.convolutions(x.transpose(1, 2).flatten(0, 1))
        return torch.cat([semantic, images.unflatten(0, (len(x), -1)).transpose(1, 2)], 1)

    def step(self, x: Tensor, state: None = None) -> tuple[Tensor, None]:
        return self.latents(x), None
