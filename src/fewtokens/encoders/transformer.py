"""Attention, MLP and block of all vision transformers."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fewtokens.encoders.config import ACTIVATIONS, ViTConfig


class Attention(nn.Module):
    """Multi-head self-attention or cross-attention, with an optional weight for each key.

    Args:
        dim, num_heads: number of channels and heads.
        cross: cross-attention, with keys and values from a second sequence (the memory).
        qkv_bias: whether queries, keys and values have biases.
        qk_norm: whether to normalize queries and keys of each head (LayerNorm).
        eps: epsilon of these norms.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        *,
        cross: bool = False,
        qkv_bias: bool = True,
        qk_norm: bool = False,
        eps: float = 1e-6,
    ) -> None:
        super().__init__()
        self.num_heads, self.cross = num_heads, cross
        if cross:
            self.q = nn.Linear(dim, dim, bias=qkv_bias)
            self.kv = nn.Linear(dim, 2 * dim, bias=qkv_bias)
        else:
            self.qkv = nn.Linear(dim, 3 * dim, bias=qkv_bias)
        self.out = nn.Linear(dim, dim)
        self.q_norm = nn.LayerNorm(dim // num_heads, eps) if qk_norm else nn.Identity()
        self.k_norm = nn.LayerNorm(dim // num_heads, eps) if qk_norm else nn.Identity()

    def project(self, x: Tensor, memory: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """Projects x [B,N,C] to queries, and x or the memory [B,M,C] to keys and values; each [B,heads,N or M,d]."""
        if self.cross:
            assert memory is not None
            q = self.q(x).unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
            k, v = self.kv(memory).unflatten(-1, (2, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        else:
            q, k, v = self.qkv(x).unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        return self.q_norm(q), self.k_norm(k), v

    def attend(self, q: Tensor, k: Tensor, v: Tensor, weight: Tensor | None = None, mode: str = "channels") -> Tensor:
        """Returns softmax(q k^T / sqrt(d) + weight) v after the output projection, [B,N,C].

        Args:
            q, k, v: queries, keys and values [B,heads,N,d].
            weight: float32 [B,N], added to the logits of each key (log of its size, or a large negative value to mask
                it), or None.
            mode: "bias" adds the weight as an attention mask; otherwise it is appended as extra channels of queries
                and keys, so that fused kernels without a mask can be used. Both compute the same function. In float32
                on a CPU, whose fused kernel takes a mask, both add it.
        """
        if weight is None:
            mixed = F.scaled_dot_product_attention(q, k, v)
        elif mode == "bias" or (q.device.type == "cpu" and q.dtype == torch.float32):
            mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=weight.to(q.dtype)[:, None, None])
        else:
            mixed = _attend_with_channels(q, k, v, weight)
        return self.out(mixed.transpose(1, 2).flatten(2))

    def forward(self, x: Tensor, memory: Tensor | None = None) -> Tensor:
        """Attends from x [B,N,C] to itself, or to the memory [B,M,C] in cross-attention; returns [B,N,C]."""
        return self.attend(*self.project(x, memory))


def _attend_with_channels(q: Tensor, k: Tensor, v: Tensor, weight: Tensor) -> Tensor:
    """Attention with the weight of each key inside the dot product: 1/scale is appended to q, the weight to k.

    In half precision the weight is split into two channels, its rounded value and the rounding error. Channels are
    padded with zeros to a multiple of 8, as fused kernels require.
    """
    heads, d = q.shape[1], q.shape[3]
    scale = d**-0.5
    coarse = weight.to(k.dtype)
    extra = [coarse]
    if k.dtype not in (torch.float32, torch.float64):
        extra.append((weight - coarse.float()).to(k.dtype))
    padding = -(d + len(extra)) % 8
    keys = torch.stack(extra, -1)[:, None].expand(-1, heads, -1, -1)
    k = F.pad(torch.cat([k, keys], -1), (0, padding))
    q = F.pad(F.pad(q, (0, len(extra)), value=1 / scale), (0, padding))
    v = F.pad(v, (0, len(extra) + padding))
    return F.scaled_dot_product_attention(q, k, v, scale=scale)[..., :d]


class Mlp(nn.Module):
    """A two-layer MLP or SwiGLU.

    Args:
        dim, hidden: input (and output) and hidden channels.
        activation: one of `fewtokens.encoders.config.ACTIVATIONS`; a gated MLP always uses silu.
        gated: whether to use SwiGLU.
    """

    def __init__(self, dim: int, hidden: int, *, activation: str = "gelu", gated: bool = False) -> None:
        super().__init__()
        self.gated = gated
        self.activation = ACTIVATIONS["silu" if gated else activation]
        self.fc1 = nn.Linear(dim, 2 * hidden if gated else hidden)
        self.fc2 = nn.Linear(hidden, dim)

    def forward(self, x: Tensor) -> Tensor:
        x = self.fc1(x)
        if self.gated:
            gate, x = x.chunk(2, dim=-1)
            return self.fc2(self.activation(gate) * x)
        return self.fc2(self.activation(x))


class Block(nn.Module):
    """A pre-norm block in two halves, so that a method can act between attention and MLP."""

    def __init__(self, config: ViTConfig) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(config.dim, config.eps)
        self.attention = make_attention(config)
        self.norm2 = nn.LayerNorm(config.dim, config.eps)
        hidden = config.mlp_dim or 4 * config.dim
        self.mlp = Mlp(config.dim, hidden, activation=config.activation, gated=config.gated)
        self.scale1 = nn.Parameter(torch.ones(config.dim)) if config.layer_scale else None
        self.scale2 = nn.Parameter(torch.ones(config.dim)) if config.layer_scale else None

    def forward(self, x: Tensor, drop_rate: float = 0.0) -> Tensor:
        """Applies both halves. `drop_rate` is the rate of stochastic depth (arXiv 1603.09382) in training."""
        x = self.drop_path(x, self.attention_half(x)[0], drop_rate)
        return self.drop_path(x, self.mlp_half(x), drop_rate)

    def drop_path(self, before: Tensor, after: Tensor, rate: float) -> Tensor:
        """Stochastic depth: drops the residual branch of some samples and rescales the others."""
        if not rate or not self.training:
            return after
        mask = torch.rand(len(after), *[1] * (after.ndim - 1), device=after.device) >= rate
        return before + (after - before) * mask / (1 - rate)

    def attention_half(
        self, x: Tensor, weight: Tensor | None = None, mode: str = "none"
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Attention with its residual; returns the output, the queries and the keys."""
        q, k, v = self.attention.project(self.norm1(x))
        return self.add_branch(x, self.attention.attend(q, k, v, weight, mode), self.scale1), q, k

    def mlp_half(self, x: Tensor) -> Tensor:
        """MLP with its residual."""
        return self.add_branch(x, self.mlp(self.norm2(x)), self.scale2)

    @staticmethod
    def add_branch(x: Tensor, branch: Tensor, scale: Tensor | None) -> Tensor:
        """Adds a branch, multiplied by its layer scale, to x."""
        return x + (branch if scale is None else scale * branch)


def make_attention(config: ViTConfig, *, cross: bool = False) -> Attention:
    """Builds the attention of a block; cross-attention does not normalize queries and keys."""
    if cross:
        return Attention(config.dim, config.num_heads, cross=True)
    return Attention(config.dim, config.num_heads, qkv_bias=config.qkv_bias, qk_norm=config.qk_norm, eps=config.eps)
