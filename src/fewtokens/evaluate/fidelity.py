"""How much of the original can be had back from few tokens."""

from __future__ import annotations

import math

import torch.nn.functional as F
from torch import Tensor


def psnr(image: Tensor, reference: Tensor) -> float:
    """Peak signal-to-noise ratio in dB of values in 0..1, over everything; infinite where equal.

    Raises:
        ValueError: shapes differ.
    """
    if image.shape != reference.shape:
        raise ValueError(f"psnr compares equal shapes, got {list(image.shape)} and {list(reference.shape)}")
    error = float((image.double() - reference.double()).square().mean())
    return math.inf if error == 0 else -10 * math.log10(error)


def relative_error(features: Tensor, reference: Tensor) -> float:
    """Frobenius norm of the difference over that of the reference; 0 = equal, about 1 = nothing kept."""
    norm = float(reference.double().norm())
    return float((features.double() - reference.double()).norm()) / norm if norm else 0.0


def mean_cosine(features: Tensor, reference: Tensor) -> float:
    """Mean cosine similarity over the last axis, in float32."""
    return float(F.cosine_similarity(features.float(), reference.float(), dim=-1).mean())
