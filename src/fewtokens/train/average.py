"""Averaged weights: they are evaluated and saved in place of the trained ones."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn


class Average:
    """An exponential moving average of parameters, sharded as they are.

    Args:
        names, parameters: what is averaged; the parameters themselves, which `swap` fills.
        decay: of the average; 0 keeps none, and everything here does nothing.
    """

    def __init__(self, names: Sequence[str], parameters: Sequence[nn.Parameter], decay: float) -> None:
        self.parameters, self.decay = parameters, decay
        pairs = zip(names, parameters, strict=True)
        self.values = {name: parameter.detach().clone() for name, parameter in pairs} if decay else None

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Takes in the parameters after a step, counted from 0."""
        if self.values is None:
            return
        # Young averages forget faster, so that the first weights do not linger.
        decay = min(self.decay, (1 + step) / (10 + step))
        torch._foreach_lerp_(list(self.values.values()), [p.detach() for p in self.parameters], 1 - decay)

    @torch.no_grad()
    def swap(self, back: list[Tensor] | None = None) -> list[Tensor] | None:
        """Puts the averaged weights in place of the trained ones and gives those, or puts those back."""
        if self.values is None:
            return None
        kept = None if back is not None else [parameter.detach().clone() for parameter in self.parameters]
        for parameter, value in zip(self.parameters, back or self.values.values(), strict=True):
            parameter.copy_(value)
        return kept
