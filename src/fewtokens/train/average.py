"""Averaged weights, which are evaluated and saved in place of the trained ones."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn


class Average:
    """An exponential moving average of parameters, sharded as they are.

    Args:
        names, parameters: the parameters to average, which `swap` fills.
        decay: the decay of the average; 0 turns averaging off.
    """

    def __init__(self, names: Sequence[str], parameters: Sequence[nn.Parameter], decay: float) -> None:
        self.parameters, self.decay = parameters, decay
        pairs = zip(names, parameters, strict=True)
        self.values = {name: parameter.detach().clone() for name, parameter in pairs} if decay else None

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Updates the average after a step, counted from 0."""
        if self.values is None:
            return
        # The decay is lower in early steps, so that the initial weights are soon forgotten.
        decay = min(self.decay, (1 + step) / (10 + step))
        torch._foreach_lerp_(list(self.values.values()), [p.detach() for p in self.parameters], 1 - decay)

    @torch.no_grad()
    def swap(self, trained: list[Tensor] | None = None) -> list[Tensor] | None:
        """Replaces the trained weights with the average and returns them; restores `trained` if given."""
        if self.values is None:
            return None
        before = None if trained is not None else [parameter.detach().clone() for parameter in self.parameters]
        for parameter, value in zip(self.parameters, trained or self.values.values(), strict=True):
            parameter.copy_(value)
        return before
