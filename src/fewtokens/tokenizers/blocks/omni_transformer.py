"""The transformer of OmniTokenizer: attention in a frame or in its windows, then over time."""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import zip_longest

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from fewtokens.tokenizers.blocks.transformer import (
    TubeletEmbedding,
    attend_in_windows,
    grid_positions,
    rotary_angles,
    rotate,
)

# Factor of the cosines of queries and keys.
_SCALE = 8.0


class NormedEmbedding(TubeletEmbedding):
    """Embeddings of tubelets, the first frame alone, with a LayerNorm of the pixels and one of the embedding."""

    def __init__(self, width: int, stride: Sequence[int]) -> None:
        super().__init__(width, stride, first_frame=True)
        # Theirs is 1e-5 with pixels in -0.5..0.5.
        self.first, self.rest = (
            nn.Sequential(nn.LayerNorm(3 * t * stride[1] * stride[2], eps=4e-5), layer, nn.LayerNorm(width))
            for t, layer in ((1, self.first), (stride[0], self.rest))
            if layer is not None
        )


class OmniTransformer(nn.Module):
    """Blocks over the features of all cells, [B,T,H,W,C], causal in time unless `scrambled` (arXiv 2406.09399).

    Blocks of "space" and "time" have a depthwise 3x3x3 convolution, attention with normalized queries and keys, and a
    GEGLU, each added to its input; those of windows have a learned bias for each offset instead of the convolution.
    Attention in a frame has rotary embeddings of row and column, attention over time has none. A LayerNorm follows the
    last block in space and the last one in time.

    Args:
        dim: number of channels C.
        layers: kind of attention, "space", "window8" (or of another size) or "time", and number of blocks of this kind,
            in their order. A window that extends past the edge has fewer cells.
        heads: number of attention heads.
        scrambled: whether convolutions of blocks over time read the cells [H,W,T] as if they were [T,H,W], as in the
            released code, with which the released weights were trained. Then a cell depends on later frames.

    Raises:
        ValueError: an argument is invalid.
    """

    def __init__(self, dim: int, layers: Sequence[tuple[str, int]], heads: int, *, scrambled: bool = False) -> None:
        super().__init__()
        if heads < 1 or dim < 1 or dim % (4 * heads):
            raise ValueError(f"each of {heads} heads must have a multiple of 4 channels, got {dim} in all")
        kinds = [kind for kind, count in layers for _ in range(count)]
        for kind in kinds:
            if not re.fullmatch(r"space|window[1-9]\d{0,3}|time", kind):
                raise ValueError(f"layers must be of the kinds space, window8 and time, got {kind!r}")
        self.blocks, self.norms = nn.ModuleList(), nn.ModuleList()
        for kind, following in zip_longest(kinds, kinds[1:]):
            window = kind.startswith("window")
            self.blocks.append(WindowBlock(dim, heads, int(kind[6:])) if window else Block(dim, heads, kind, scrambled))
            is_last = following is None or (kind == "time") != (following == "time")
            self.norms.append(nn.LayerNorm(dim, bias=False) if is_last else nn.Identity())

    def forward(self, x: Tensor) -> Tensor:
        """Maps the features of all cells [B,T,H,W,C] to new ones."""
        for block, norm in zip(self.blocks, self.norms, strict=True):
            x = norm(block(x))
        return x


class Block(nn.Module):
    """A depthwise convolution, attention in a frame ("space") or to earlier frames ("time"), and a GEGLU."""

    def __init__(self, dim: int, heads: int, kind: str, scrambled: bool) -> None:
        super().__init__()
        self.heads, self.kind, self.scrambled = heads, kind, scrambled and kind == "time"
        self.conv = nn.Conv3d(dim, dim, 3, groups=dim)
        self.norm = nn.LayerNorm(dim, bias=False)
        self.q, self.kv = nn.Linear(dim, dim, bias=False), nn.Linear(dim, 2 * dim, bias=False)
        self.q_scale, self.k_scale = (nn.Parameter(torch.ones(dim // heads)) for _ in range(2))
        self.out = nn.Linear(dim, dim, bias=False)
        self.mlp = GeGlu(dim)

    def forward(self, x: Tensor) -> Tensor:
        """Maps [B,T,H,W,C] to [B,T,H,W,C]."""
        x = x + self._convolve(x)
        x = x + self._attend(x)
        return x + self.mlp(x)

    def _convolve(self, x: Tensor) -> Tensor:
        B, T, H, W, C = x.shape
        if self.scrambled:
            x = x.permute(0, 2, 3, 1, 4).reshape(B, T, H, W, C)
        x = self.conv(F.pad(x.movedim(-1, 1), (1, 1, 1, 1, 2, 0))).movedim(1, -1)
        return x.reshape(B, H, W, T, C).permute(0, 3, 1, 2, 4) if self.scrambled else x

    def _attend(self, x: Tensor) -> Tensor:
        T, H, W = x.shape[1:4]
        # Keys and values are those of the input before the norm.
        k, v = self.kv(x).chunk(2, -1)
        pattern = "b t h w (n d) -> (b h w) n t d" if self.kind == "time" else "b t h w (n d) -> (b t) n (h w) d"
        q, k, v = (rearrange(part, pattern, n=self.heads) for part in (self.q(self.norm(x)), k, v))
        if self.kind == "space":
            places = grid_positions(1, H, W, device=x.device)[:, 1:]
            angles = rotary_angles(places, q.shape[-1], 2)
            q, k = rotate(q, angles), rotate(k, angles)
        q, k = F.normalize(q, dim=-1) * self.q_scale, F.normalize(k, dim=-1) * self.k_scale
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=self.kind == "time", scale=_SCALE)
        left, right = pattern.split(" -> ")
        attended: Tensor = self.out(rearrange(mixed, f"{right} -> {left}", t=T, h=H, w=W))
        return attended


class WindowBlock(nn.Module):
    """Attention in windows of a frame, with a learned bias for each offset, and a GEGLU."""

    def __init__(self, dim: int, heads: int, size: int) -> None:
        super().__init__()
        self.heads, self.size = heads, size
        self.norm, self.qkv, self.out = (
            nn.LayerNorm(dim, bias=False), nn.Linear(dim, 3 * dim, bias=False), nn.Linear(dim, dim),
        )  # fmt: skip
        self.offsets = nn.Parameter(0.02 * torch.randn(2 * size - 1, 2 * size - 1, heads))
        self.mlp = GeGlu(dim)

    def forward(self, x: Tensor) -> Tensor:
        """Maps [B,T,H,W,C] to [B,T,H,W,C]."""
        x = x + self._attend(x)
        return x + self.mlp(x)

    def _attend(self, x: Tensor) -> Tensor:
        q, k, v = (
            rearrange(part, "b t h w (n d) -> b n t h w d", n=self.heads)
            for part in self.qkv(self.norm(x)).chunk(3, -1)
        )
        places = grid_positions(1, self.size, self.size, device=x.device)[:, 1:].long()
        rows, columns = (places[:, None] - places + self.size - 1).unbind(-1)
        bias = self.offsets[rows, columns].movedim(-1, 0).to(q.dtype)
        mixed = attend_in_windows(q, k, v, self.size, bias)
        attended: Tensor = self.out(rearrange(mixed, "b n t h w d -> b t h w (n d)"))
        return attended


class GeGlu(nn.Module):
    """A LayerNorm and a gated MLP with 8/3 * dim hidden channels (arXiv 2002.05202)."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        hidden = 8 * dim // 3
        self.norm = nn.LayerNorm(dim)
        self.fc1, self.fc2 = nn.Linear(dim, 2 * hidden, bias=False), nn.Linear(hidden, dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Maps [...,C] to [...,C]."""
        value, gate = self.fc1(self.norm(x)).chunk(2, -1)
        gated: Tensor = self.fc2(F.gelu(gate) * value)
        return gated
