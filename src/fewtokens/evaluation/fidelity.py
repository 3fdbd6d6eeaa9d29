"""How well few tokens preserve the original features."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor


def psnr(image: Tensor, reference: Tensor) -> float:
    """Peak signal-to-noise ratio in dB over all values, which are in 0..1; infinite if equal.

    Raises:
        ValueError: shapes differ.
    """
    if image.shape != reference.shape:
        raise ValueError(
            f"image and reference must have the same shape, got {list(image.shape)} and {list(reference.shape)}"
        )
    error = float((image.double() - reference.double()).square().mean())
    return math.inf if error == 0 else -10 * math.log10(error)


def relative_error(features: Tensor, reference: Tensor) -> float:
    """Frobenius norm of the difference over that of the reference: 0 if equal, about 1 if nothing is preserved."""
    norm = float(reference.double().norm())
    return float((features.double() - reference.double()).norm()) / norm if norm else 0.0


def mean_cosine(features: Tensor, reference: Tensor) -> float:
    """Mean cosine similarity over the last axis, in float32."""
    return float(F.cosine_similarity(features.float(), reference.float(), dim=-1).mean())


def rare_cells(reference: Tensor, fraction: float = 0.05) -> Tensor:
    """Marks the cells least similar (cosine) to the mean of their frame, at least one; bool [T,H,W].

    Args:
        reference: [T,H,W,C].
        fraction: fraction of all cells of the video.
    """
    x = reference.float().flatten(1, 2)
    similarity = F.cosine_similarity(x, x.mean(1, keepdim=True), dim=2).flatten()
    count = max(1, round(fraction * len(similarity)))
    rare = torch.zeros_like(similarity, dtype=torch.bool)
    rare[similarity.argsort(stable=True)[:count]] = True
    return rare.reshape(reference.shape[:3])


def neighbor_agreement(few: Tensor, full: Tensor) -> tuple[float, float]:
    """Measures whether clips have the same nearest neighbors with few tokens as with all tokens.

    Args:
        few: one vector per clip, computed from few tokens, [n,C]; n at least 3.
        full: one vector per clip, computed from all cells, [n,C].

    Returns:
        The fraction of clips with the same nearest other clip (cosine), and the mean rank correlation (Spearman) of
        the similarities to all other clips.
    """
    ranks = []
    nearest = []
    for vectors in (few, full):
        unit = F.normalize(vectors.double(), dim=1)
        similarity = unit @ unit.T
        others = similarity[~torch.eye(len(similarity), dtype=torch.bool)].reshape(len(similarity), -1)
        nearest.append(others.argmax(1))
        ranks.append(others.argsort(dim=1).argsort(dim=1).double())
    a, b = (rank - rank.mean(1, keepdim=True) for rank in ranks)
    correlation = (a * b).sum(1) / (a.norm(dim=1) * b.norm(dim=1)).clamp(min=1e-12)
    return float((nearest[0] == nearest[1]).double().mean()), float(correlation.mean())
