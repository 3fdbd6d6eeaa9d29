"""What is minimised. An objective is called with the network, a batch and a generator."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn


@dataclass(frozen=True)
class Classification:
    """Cross-entropy or sigmoid loss on clips [B,V,T,3,H,W] and targets, with mixup and cutmix.

    Attributes:
        loss: "softmax" or "sigmoid" (the sum over the classes of yes-or-no cross-entropies, as the paper's code).
        label_smoothing: share of a target that is spread over all classes.
        mixup: arXiv 1710.09412; cutmix: arXiv 1905.04899; alphas of their Beta distributions, 0 is off; with both, one
            of them is drawn for each batch.
    """

    loss: str = "softmax"
    label_smoothing: float = 0.0
    mixup: float = 0.0
    cutmix: float = 0.0

    def __call__(
        self, model: nn.Module, batch: dict[str, Any], generator: torch.Generator
    ) -> tuple[Tensor, dict[str, Tensor]]:
        clips, targets = batch["clips"], batch["targets"]
        clips = clips[:, 0] if clips.ndim == 6 else clips
        mixed, other, share = self._mix(clips, generator)
        logits = model(mixed)
        wanted = self._soft(targets, logits.shape[1])
        if other is not None:
            wanted = share * wanted + (1 - share) * wanted[other]
        named = {}
        if targets.ndim == 1 and other is None:
            named["accuracy"] = (logits.argmax(1) == targets).float().mean()
        logits = logits.float()
        if self.loss == "sigmoid":
            return F.binary_cross_entropy_with_logits(logits, wanted, reduction="none").sum(1).mean(), named
        return -(wanted * logits.log_softmax(1)).sum(1).mean(), named

    def _soft(self, targets: Tensor, classes: int) -> Tensor:
        wanted = F.one_hot(targets, classes).float() if targets.ndim == 1 else targets.float()
        if not self.label_smoothing:
            return wanted
        spread = 1 / classes if targets.ndim == 1 else 0.5
        return wanted * (1 - self.label_smoothing) + self.label_smoothing * spread

    def _mix(self, clips: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor | None, float]:
        """Mixed clips, which clip each was mixed with, and the share that is its own."""
        ways = [name for name in ("mixup", "cutmix") if getattr(self, name)]
        if not ways or len(clips) < 2:
            return clips, None, 1.0
        seed = int(torch.randint(2**31, (), generator=generator))
        draw = np.random.default_rng(seed)
        way = ways[int(draw.integers(len(ways)))]
        alpha = getattr(self, way)
        share = float(draw.beta(alpha, alpha))
        other = torch.randperm(len(clips), generator=generator).to(clips.device)
        if way == "mixup":
            return share * clips + (1 - share) * clips[other], other, share
        height, width = clips.shape[-2:]
        rows, columns = round(height * (1 - share) ** 0.5), round(width * (1 - share) ** 0.5)
        top, left = int(draw.integers(height - rows + 1)), int(draw.integers(width - columns + 1))
        cut = clips.clone()
        cut[..., top : top + rows, left : left + columns] = clips[other][..., top : top + rows, left : left + columns]
        return cut, other, 1 - rows * columns / (height * width)
