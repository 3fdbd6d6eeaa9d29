"""The convolutional encoder of image tokenizers with several branches of transformer blocks at its end."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from fewtokens.tokenizers.blocks.causal_conv import check_counts
from fewtokens.tokenizers.blocks.transformer import VideoTransformer
from fewtokens.tokenizers.encoders.conv2d import Conv2d
from fewtokens.tokenizers.parts import VideoEncoder


class BranchedConv2d(VideoEncoder):
    """The encoder of FQGAN (arXiv 2411.16681): `conv2d`, then branches whose channels are concatenated.

    Each branch is a transformer over the cells of a frame, ending in a layer norm and a linear layer.

    Args:
        branches: number of branches, one for each codebook.
        channels: of a token in each branch.
        width, mult, depth: of the convolutions, see `conv2d`.
        hidden: channels of the branches, a multiple of 64 or at most 64; one head per 64.
        layers: transformer blocks of a branch.
        teacher: image encoder whose features the last branch learns to predict, see the encoder `frozen`.
    """

    causal = True

    def __init__(
        self,
        branches: int = 2,
        *,
        channels: int = 8,
        width: int = 128,
        mult: Sequence[int] = (1, 1, 2, 2, 4),
        depth: int = 2,
        hidden: int = 512,
        layers: int = 6,
        teacher: str = "random",
    ) -> None:
        super().__init__()
        check_counts(branches=branches, channels=channels, hidden=hidden, layers=layers)
        self.branches, self.channels, self.width, self.mult = branches, channels, width, tuple(mult)
        self.depth, self.hidden, self.layers, self.teacher = depth, hidden, layers, teacher
        self.trunk = Conv2d(hidden, width=width, mult=mult, depth=depth)
        self.stride = self.trunk.stride
        self.blocks = nn.ModuleList(
            VideoTransformer(hidden, (("space", layers),), max(1, hidden // 64)) for _ in range(branches)
        )
        self.ends = nn.ModuleList(
            nn.Sequential(nn.LayerNorm(hidden), nn.Linear(hidden, channels)) for _ in range(branches)
        )

    @property
    def dim(self) -> int:
        return self.branches * self.channels

    def latents(self, x: Tensor) -> Tensor:
        trunk = self.trunk.latents(x).movedim(1, -1)
        parts = [end(block(trunk)) for block, end in zip(self.blocks, self.ends, strict=True)]
        return torch.cat(parts, -1).movedim(-1, 1)

    def step(self, x: Tensor, state: None = None) -> tuple[Tensor, None]:
        return self.latents(x), None
