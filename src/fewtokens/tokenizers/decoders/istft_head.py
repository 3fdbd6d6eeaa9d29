"""A decoder of sounds that predicts the spectra of short windows."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fewtokens.core.tokens import Tokens
from fewtokens.encoders.transformer import Attention
from fewtokens.tokenizers.blocks.spectrum import istft
from fewtokens.tokenizers.parts import Decoder

# Larger magnitudes are limited to this one, as in Vocos.
_MAX_MAGNITUDE = 100.0


class IstftHead(Decoder):
    """Decodes one token per hop by attention and ConvNeXt blocks; their output is a magnitude and a phase.

    The decoder of WavTokenizer (arXiv 2408.16532), which is that of Vocos (arXiv 2306.00814) with an attention block
    before it. The window has four hops.

    Args:
        dim: number of channels of a token.
        width, hidden, depth: channels, hidden channels and number of ConvNeXt blocks.
        hop: samples per token.
        heads: attention heads.
    """

    def __init__(
        self, dim: int = 512, *, width: int = 768, hidden: int = 2304, depth: int = 12, hop: int = 320, heads: int = 1
    ) -> None:
        super().__init__()
        self.dim, self.width, self.hidden, self.depth, self.hop, self.heads = dim, width, hidden, depth, hop, heads
        self.stride, self.window = (hop, 1, 1), 4 * hop
        self.embed = nn.Conv1d(dim, width, 7, padding=3)
        self.norm = nn.LayerNorm(width, 1e-6)
        self.attention_norm = nn.LayerNorm(width, 1e-6)
        self.attention = Attention(width, heads)
        self.blocks = nn.ModuleList(ConvNext(width, hidden, 1 / depth) for _ in range(depth))
        self.last_norm = nn.LayerNorm(width, 1e-6)
        self.head = nn.Linear(width, self.window + 2)

    def forward(self, tokens: Tokens) -> Tensor:
        """Decodes tokens to samples [B,S], about -1..1."""
        x = self.norm(self.embed(tokens.unmerge()[:, :, 0, 0].mT).mT)
        q, k, v = self.attention.project(self.attention_norm(x))
        mixed = nn.functional.scaled_dot_product_attention(q, k, v)
        x = x + self.attention.out(mixed.transpose(1, 2).flatten(2))
        for block in self.blocks:
            x = block(x)
        magnitude, phase = self.head(self.last_norm(x)).mT.float().chunk(2, 1)
        return istft(torch.polar(magnitude.exp().clamp(max=_MAX_MAGNITUDE), phase), self.window, self.hop)


class ConvNext(nn.Module):
    """A ConvNeXt block over time (arXiv 2201.03545) on [B,T,C]."""

    def __init__(self, width: int, hidden: int, scale: float) -> None:
        super().__init__()
        self.depthwise = nn.Conv1d(width, width, 7, padding=3, groups=width)
        self.norm = nn.LayerNorm(width, 1e-6)
        self.mlp = nn.Sequential(nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, width))
        self.scale = nn.Parameter(torch.full((width,), scale))

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = x + self.scale * self.mlp(self.norm(self.depthwise(x.mT).mT))
        return y
