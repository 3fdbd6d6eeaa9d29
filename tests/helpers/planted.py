"""Tokens with known clusters."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from fewtokens.core.tokens import Tokens


def planted_clusters(
    k: int, n: int = 240, C: int = 48, noise: float = 0.05, seed: int = 0
) -> tuple[Tokens, torch.Tensor]:
    """n tokens of various norms around k well separated directions, and their true labels."""
    g = torch.Generator().manual_seed(seed)
    directions = F.normalize(torch.randn(k, C, generator=g), dim=1)
    labels = torch.randint(0, k, (n,), generator=g)
    labels[:k] = torch.arange(k)
    length = 1 + 4 * torch.rand(n, 1, generator=g)
    x = (directions[labels] + noise * torch.randn(n, C, generator=g)) * length
    return Tokens.from_cells(x.reshape(1, 1, 1, n, C)), labels


def same_partition(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Whether two labelings define the same partition."""
    return torch.equal(a[:, None] == a[None], b[:, None] == b[None])
