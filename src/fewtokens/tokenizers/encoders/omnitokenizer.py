"""The encoder of OmniTokenizer."""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from fewtokens.tokenizers.blocks.omni_transformer import NormedEmbedding, OmniTransformer
from fewtokens.tokenizers.blocks.transformer import checked_stride
from fewtokens.tokenizers.parts import VideoEncoder


class Omnitokenizer(VideoEncoder):
    """Embeds tubelets, applies blocks in space and then over time, and projects to a few channels.

    OmniTokenizer (arXiv 2406.09399), with the parameters of its code. The first frame, which may be an image, has
    separate cells. Pixels of a tubelet are normalized, and so is its embedding.

    Args:
        width: channels of the transformer.
        channels: channels of a token.
        unit: whether tokens have length 1, as those with a codebook.
        stride: frames, rows and columns of a tubelet.
        layers: kind and number of blocks, see `OmniTransformer`.
        heads: attention heads, of a multiple of 4 channels.
        scrambled: whether blocks over time are those of the released code, which mix frames; then it is not causal.
    """

    first_frame = True

    def __init__(
        self,
        width: int = 512,
        *,
        channels: int = 8,
        unit: bool = True,
        stride: Sequence[int] = (4, 8, 8),
        layers: Sequence[tuple[str, int]] = (("space", 2), ("window8", 2), ("time", 4)),
        heads: int = 8,
        scrambled: bool = False,
    ) -> None:
        super().__init__()
        if channels < 1:
            raise ValueError(f"channels must be at least 1, got {channels}")
        self.width, self.channels, self.unit, self.layers = width, channels, unit, layers
        self.heads, self.scrambled, self.causal = heads, scrambled, not scrambled
        self.stride = checked_stride(stride, True)
        self.embed = NormedEmbedding(width, self.stride)
        self.transformer = OmniTransformer(width, layers, heads, scrambled=scrambled)
        self.project = nn.Linear(width, channels)

    @property
    def dim(self) -> int:
        return self.channels

    def latents(self, x: Tensor) -> Tensor:
        projected: Tensor = self.project(self.transformer(self.embed(x)))
        return (F.normalize(projected, dim=-1) if self.unit else projected).movedim(-1, 1)
