"""A residual block of 2-D convolutions."""

from __future__ import annotations

from torch import Tensor, nn


class Residual2d(nn.Module):
    """Two 3x3 convolutions, each after GroupNorm and SiLU, added to the input.

    Args:
        width: number of channels.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        groups = 8 if width % 8 == 0 else 1
        self.layers = nn.Sequential(
            nn.GroupNorm(groups, width), nn.SiLU(), nn.Conv2d(width, width, 3, padding=1),
            nn.GroupNorm(groups, width), nn.SiLU(), nn.Conv2d(width, width, 3, padding=1),
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        """Maps [B,C,H,W] to the same shape."""
        changed: Tensor = x + self.layers(x)
        return changed
