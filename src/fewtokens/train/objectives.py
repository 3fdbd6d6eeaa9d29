"""Training objectives, which are called with the network, a batch and a generator."""

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
        loss: "softmax" or "sigmoid" (binary cross-entropy summed over the classes, as in the paper's code).
        label_smoothing: the fraction of a target that is spread over all classes.
        mixup, cutmix: alphas of their Beta distributions (arXiv 1710.09412, 1905.04899); 0 is off. With both, one of
            them is sampled for each batch.
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
        mixed, partner, fraction = self._mix(clips, generator)
        logits = model(mixed)
        soft_targets = self._soft(targets, logits.shape[1])
        if partner is not None:
            soft_targets = fraction * soft_targets + (1 - fraction) * soft_targets[partner]
        metrics = {}
        if targets.ndim == 1 and partner is None:
            metrics["accuracy"] = (logits.argmax(1) == targets).float().mean()
        logits = logits.float()
        if self.loss == "sigmoid":
            return F.binary_cross_entropy_with_logits(logits, soft_targets, reduction="none").sum(1).mean(), metrics
        return -(soft_targets * logits.log_softmax(1)).sum(1).mean(), metrics

    def _soft(self, targets: Tensor, classes: int) -> Tensor:
        soft_targets = F.one_hot(targets, classes).float() if targets.ndim == 1 else targets.float()
        if not self.label_smoothing:
            return soft_targets
        spread = 1 / classes if targets.ndim == 1 else 0.5
        return soft_targets * (1 - self.label_smoothing) + self.label_smoothing * spread

    def _mix(self, clips: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor | None, float]:
        """Returns mixed clips, the index of the clip that each is mixed with, and the weight of the original clip."""
        names = [name for name in ("mixup", "cutmix") if getattr(self, name)]
        if not names or len(clips) < 2:
            return clips, None, 1.0
        seed = int(torch.randint(2**31, (), generator=generator))
        rng = np.random.default_rng(seed)
        name = names[int(rng.integers(len(names)))]
        alpha = getattr(self, name)
        fraction = float(rng.beta(alpha, alpha))
        partner = torch.randperm(len(clips), generator=generator).to(clips.device)
        if name == "mixup":
            return fraction * clips + (1 - fraction) * clips[partner], partner, fraction
        height, width = clips.shape[-2:]
        rows, columns = round(height * (1 - fraction) ** 0.5), round(width * (1 - fraction) ** 0.5)
        top, left = int(rng.integers(height - rows + 1)), int(rng.integers(width - columns + 1))
        cut = clips.clone()
        cut[..., top : top + rows, left : left + columns] = clips[partner][..., top : top + rows, left : left + columns]
        return cut, partner, 1 - rows * columns / (height * width)
