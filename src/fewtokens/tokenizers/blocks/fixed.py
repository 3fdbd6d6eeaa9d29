"""Networks inside a tokenizer that are not trained."""

from __future__ import annotations

from typing import Any, Self

from torch import nn


class Fixed(nn.Module):
    """Holds a network that is not trained: its parameters get no gradient, and it stays in eval mode.

    Gradients still pass through it to its input.

    Args:
        network: the network.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network.requires_grad_(False).eval()

    def train(self, mode: bool = True) -> Self:
        return super().train(False)

    def forward(self, *inputs: Any, **options: Any) -> Any:
        return self.network(*inputs, **options)
