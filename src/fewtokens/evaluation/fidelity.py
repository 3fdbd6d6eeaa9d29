"""How much of the original can be had back from few tokens."""

from __future__ import annotations

import math

import torch
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


def rare_cells(reference: Tensor, share: float = 0.05) -> Tensor:
    """The cells least like the mean of their frame (cosine), at least one; bool [T,H,W].

    Args:
        reference: [T,H,W,C].
        share: of all cells of the video.
    """
    x = reference.float().flatten(1, 2)
    like = F.cosine_similarity(x, x.mean(1, keepdim=True), dim=2).flatten()
    number = max(1, round(share * len(like)))
    chosen = torch.zeros_like(like, dtype=torch.bool)
    chosen[like.argsort(stable=True)[:number]] = True
    return chosen.reshape(reference.shape[:3])


def neighbour_agreement(few: Tensor, full: Tensor) -> tuple[float, float]:
    """How far clips find the same neighbors by few tokens as by all.

    Args:
        few: one vector for each clip made of its few tokens, [n,C]. full: of all its cells, [n,C]; n at least 3.

    Returns:
        The share of clips whose nearest other clip (cosine) is the same, and the mean rank correlation (Spearman) of
        the likenesses of all others.
    """
    ranks = []
    nearest = []
    for vectors in (few, full):
        unit = F.normalize(vectors.double(), dim=1)
        like = unit @ unit.T
        others = like[~torch.eye(len(like), dtype=torch.bool)].reshape(len(like), -1)
        nearest.append(others.argmax(1))
        ranks.append(others.argsort(dim=1).argsort(dim=1).double())
    centred = [rank - rank.mean(1, keepdim=True) for rank in ranks]
    together = (centred[0] * centred[1]).sum(1) / (centred[0].norm(dim=1) * centred[1].norm(dim=1)).clamp(min=1e-12)
    return float((nearest[0] == nearest[1]).double().mean()), float(together.mean())
