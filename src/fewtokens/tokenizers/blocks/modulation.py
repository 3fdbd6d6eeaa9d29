"""Layers of diffusion networks that are modulated by the noise level: adaLN-zero of DiT (arXiv 2212.09748)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fewtokens.encoders.transformer import Attention, Mlp


class LevelEmbedding(nn.Module):
    """Embeds noise levels in 0..1 by 128 cosines and sines of 1000 s and a two-layer MLP: [...] to [...,dim]."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(256, dim), nn.Linear(dim, dim)

    def forward(self, s: Tensor) -> Tensor:
        rates = 10_000.0 ** (-torch.arange(128, device=s.device) / 128)
        angles = 1000 * s.float()[..., None] * rates
        waves = torch.cat([angles.cos(), angles.sin()], -1).to(self.fc1.weight.dtype)
        embedded: Tensor = self.fc2(F.silu(self.fc1(waves)))
        return embedded


class Modulation(nn.Module):
    """Computes `count` vectors of `dim` channels from a condition [...,dim]; zero at the start."""

    def __init__(self, dim: int, count: int) -> None:
        super().__init__()
        self.count = count
        self.project = nn.Linear(dim, count * dim)
        nn.init.zeros_(self.project.weight)
        nn.init.zeros_(self.project.bias)

    def forward(self, condition: Tensor) -> tuple[Tensor, ...]:
        return self.project(F.silu(condition)).chunk(self.count, -1)


class ModulatedMlp(nn.Module):
    """Adds g * MLP(LN(x) (1 + scale) + shift) to x: a block of the diffusion head of MAR (arXiv 2406.11838)."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(dim, eps=1e-6)
        self.fc1, self.fc2 = nn.Linear(dim, dim), nn.Linear(dim, dim)
        self.modulation = Modulation(dim, 3)

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        """Maps x [...,dim] with a condition of the same shape, or one that is broadcast."""
        shift, scale, gate = self.modulation(condition)
        return x + gate * self.fc2(F.silu(self.fc1(self.norm(x) * (1 + scale) + shift)))


class ModulatedBlock(nn.Module):
    """A transformer block whose two halves are modulated and gated; the identity at the start."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps=1e-6, elementwise_affine=False)
        self.norm2 = nn.LayerNorm(dim, eps=1e-6, elementwise_affine=False)
        self.attention = Attention(dim, heads)
        self.mlp = Mlp(dim, 4 * dim, activation="gelu_pytorch_tanh")
        self.modulation = Modulation(dim, 6)

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        """Maps x [B,N,dim] with a condition [B,1,dim]."""
        shift1, scale1, gate1, shift2, scale2, gate2 = self.modulation(condition)
        x = x + gate1 * self.attention(self.norm1(x) * (1 + scale1) + shift1)
        return x + gate2 * self.mlp(self.norm2(x) * (1 + scale2) + shift2)


class ModulatedOutput(nn.Module):
    """A modulated norm and a linear layer to `out` channels; zero at the start."""

    def __init__(self, dim: int, out: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(dim, eps=1e-6, elementwise_affine=False)
        self.modulation = Modulation(dim, 2)
        self.project = nn.Linear(dim, out)
        nn.init.zeros_(self.project.weight)
        nn.init.zeros_(self.project.bias)

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        shift, scale = self.modulation(condition)
        projected: Tensor = self.project(self.norm(x) * (1 + scale) + shift)
        return projected


def heads_of(dim: int) -> int:
    """The number of attention heads of 64 channels, or 1 of all channels.

    Raises:
        ValueError: the channels cannot be divided.
    """
    if dim > 64 and dim % 64:
        raise ValueError(f"width must be at most 64 or a multiple of 64, the channels of a head, got {dim}")
    return max(1, dim // 64)
