"""Predicts the second of two frames from the first one and tokens of the motion."""

from __future__ import annotations

import torch
from einops import rearrange
from torch import Tensor, nn

from fewtokens.core.tokens import Tokens
from fewtokens.tokenizers.blocks.transformer import VideoTransformer
from fewtokens.tokenizers.parts import Decoder


class NextFrame(Decoder):
    """A ViT over the patches of the first frame, to each of which the mean of the tokens is added.

    The decoder of Moto (arXiv 2412.04445). The first frame is in `prefix` of the tokens, see `with_first_frame`; the
    tokens say only what changes. Positions are rotary; the paper's are learned.

    Args:
        dim: number of channels of a token.
        width, depth, heads: channels, blocks and attention heads of the transformer.
        patch: side of a patch in pixels.
    """

    full_grid = False

    def __init__(self, dim: int = 768, *, width: int = 768, depth: int = 12, heads: int = 12, patch: int = 16) -> None:
        super().__init__()
        self.dim, self.width, self.depth, self.heads, self.patch = dim, width, depth, heads, patch
        self.stride = (2, patch, patch)
        self.embed = nn.Linear(3 * patch * patch, width)
        self.motion = nn.Linear(dim, width)
        self.transformer = VideoTransformer(width, (("space", depth),), heads)
        self.norm = nn.LayerNorm(width, 1e-6)
        self.head = nn.Linear(width, 3 * patch * patch)

    def forward(self, tokens: Tokens) -> Tensor:
        if tokens.grid.T != 1 or tokens.prefix is None:
            raise ValueError(f"{self.name} decodes one pair of frames, of which the first one must be given (side=...)")
        _, height, width = self.pixels(tokens.grid)
        first = tokens.prefix.reshape(tokens.B, height, width, 3).to(self.head.weight.dtype) * 2 - 1
        p = self.patch
        patches = rearrange(first, "b (h p) (w q) c -> b 1 h w (p q c)", p=p, q=p)
        mean = (tokens.features * tokens.mask[..., None]).sum(1) / tokens.count[:, None].clamp(min=1)
        x = self.embed(patches) + self.motion(mean)[:, None, None, None]
        second = self.head(self.norm(self.transformer(x)))
        second = rearrange(second, "b 1 h w (p q c) -> b c (h p) (w q)", p=p, q=p)
        return torch.stack([first.permute(0, 3, 1, 2), second], 1)


def with_first_frame(tokens: Tokens, frames: Tensor) -> Tokens:
    """Returns tokens whose `prefix` has the pixels [B,3,height,width] in 0..1 of the first frame, one row per line."""
    return tokens.replace(prefix=frames.permute(0, 2, 3, 1).flatten(2).to(tokens.features.dtype))
