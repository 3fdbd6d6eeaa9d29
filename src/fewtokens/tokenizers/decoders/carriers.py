"""A causal transformer over tokens and mask tokens of patches, then convolutions: the decoder of VFMTok."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fewtokens.core.tokens import Tokens
from fewtokens.encoders.transformer import Attention, Mlp
from fewtokens.tokenizers.blocks.conv_up import ConvUp
from fewtokens.tokenizers.parts import Decoder


class Carriers(Decoder):
    """Decodes each frame from its tokens, of which there is any number, the same for all frames.

    VFMTok (arXiv 2507.08441): a transformer over the sequence [tokens, class, mask tokens of patches, registers] with a
    lower-triangular mask; convolutions map the outputs of patches to pixels. The same transformer with a second mask
    token predicts features of an image encoder (`features`).

    Positions are sines and cosines, of the index for tokens and of the row and column for patches, so any number of
    both can be decoded; the paper does not state them.

    Args:
        dim: number of channels of a token.
        width, depth, heads: channels, blocks and attention heads of the transformer.
        stride: 1, and the height and width of a cell in pixels.
        widths: channels of the levels of the convolutions, see `ConvUp`; they set the side of a patch, which may differ
            from that of a cell. The last patches extend past the edge and are cropped.
        blocks: residual blocks of a level.
        targets: number of channels of the predicted features; 0 for no prediction.
    """

    full_grid = False
    causal = True
    registers = 4

    def __init__(
        self,
        dim: int = 384,
        *,
        width: int = 512,
        depth: int = 6,
        heads: int = 8,
        stride: Sequence[int] = (1, 16, 16),
        widths: Sequence[int] = (512, 256, 256, 128, 128),
        blocks: int = 3,
        targets: int = 0,
    ) -> None:
        super().__init__()
        if len(stride) != 3 or stride[0] != 1 or min(stride) < 1:
            raise ValueError(f"stride must be 1 frame and the height and width of a cell, got {tuple(stride)}")
        if min(width, depth, heads) < 1 or width % 4 or width % heads:
            raise ValueError(f"width must be a multiple of 4 and of heads, got {width}, {depth} and {heads}")
        self.dim, self.width, self.depth, self.heads = dim, width, depth, heads
        self.stride = (1, stride[1], stride[2])
        self.widths, self.blocks, self.targets = tuple(widths), blocks, targets
        self.patch = 2 ** (len(widths) - 1)
        self.embed = nn.Linear(dim, width)
        self.class_token = nn.Parameter(0.02 * torch.randn(1, width))
        self.register_tokens = nn.Parameter(0.02 * torch.randn(self.registers, width))
        self.mask_token = nn.Parameter(0.02 * torch.randn(width))
        self.stack = nn.ModuleList(_Block(width, heads) for _ in range(depth))
        self.norm = nn.LayerNorm(width, 1e-6)
        self.to_pixels = ConvUp(width, widths, blocks)
        if targets:
            self.feature_mask_token = nn.Parameter(0.02 * torch.randn(width))
            self.feature_head = nn.Linear(width, targets)

    def forward(self, tokens: Tokens) -> Tensor:
        _, height, width = self.pixels(tokens.grid)
        H, W = -(-height // self.patch), -(-width // self.patch)
        x = self._run(tokens, self.mask_token, H, W)
        images = self.to_pixels(x.mT.reshape(len(x), -1, H, W))[..., :height, :width]
        return images.unflatten(0, (tokens.B, -1))

    def step(self, tokens: Tokens, state: None = None) -> tuple[Tensor, None]:
        return self(tokens), None

    def predict(self, tokens: Tokens) -> Tensor:
        """Predicts the features [B,T,H,W,targets] of an image encoder in each cell."""
        T, H, W = tokens.grid.shape
        found: Tensor = self.feature_head(self._run(tokens, self.feature_mask_token, H, W))
        return found.reshape(tokens.B, T, H, W, -1)

    def _run(self, tokens: Tokens, mask_token: Tensor, H: int, W: int) -> Tensor:
        """The outputs [B*T,H*W,width] of the mask tokens of H x W patches."""
        T = tokens.grid.T
        if tokens.N % T or not bool(tokens.mask.all()):
            raise ValueError(f"{self.name} reads the same number of tokens of each frame, got {tokens.N} of {T} frames")
        x = self.embed(tokens.features.reshape(tokens.B * T, tokens.N // T, -1))
        x = x + _waves(torch.arange(x.shape[1], device=x.device)[:, None], self.width).to(x.dtype)
        rows = torch.cartesian_prod(torch.arange(H, device=x.device), torch.arange(W, device=x.device)).reshape(-1, 2)
        patches = mask_token + _waves(rows, self.width).to(x.dtype)
        rest = torch.cat([self.class_token, patches, self.register_tokens])
        start, x = x.shape[1] + 1, torch.cat([x, rest.expand(len(x), -1, -1)], 1)
        for block in self.stack:
            x = block(x)
        return self.norm(x[:, start : start + H * W])


class _Block(nn.Module):
    """A pre-norm block in which each position attends to itself and earlier ones."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norm1, self.attention = nn.LayerNorm(width, 1e-6), Attention(width, heads)
        self.norm2, self.mlp = nn.LayerNorm(width, 1e-6), Mlp(width, 4 * width)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.attention.project(self.norm1(x))
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.attention.out(mixed.transpose(1, 2).flatten(2))
        out: Tensor = x + self.mlp(self.norm2(x))
        return out


def _waves(positions: Tensor, width: int) -> Tensor:
    """Sines and cosines of positions on D axes [n,D], which share the channels equally, float32 [n,width]."""
    waves = width // (2 * positions.shape[1])
    rates = 10_000.0 ** (-torch.arange(waves, device=positions.device) / waves)
    angles = (positions[..., None] * rates).flatten(1)
    return torch.cat([angles.sin(), angles.cos()], 1)
