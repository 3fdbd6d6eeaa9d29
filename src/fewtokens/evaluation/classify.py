"""Scores of classifiers: top-k, mean average precision, several views of one item."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from fewtokens.data import ClipData
from fewtokens.evaluation.items import over_items

AVERAGES = ("logits", "probabilities")


def predict(
    model: nn.Module,
    data: ClipData,
    *,
    batch: int = 64,
    workers: int = 0,
    average: str = "logits",
    loss: str = "softmax",
    progress: Callable[[int, int], None] | None = None,
) -> tuple[Tensor, Tensor, list[str]]:
    """Scores of every item, its views averaged.

    Args:
        model: clips to logits, on its device; put into eval mode.
        data: of a test; its view says how many clips and crops.
        batch: views in one pass.
        workers: processes that read.
        average: "logits" (the same ranking as their sum, as the released ViViT code adds them) or "probabilities".
        loss: "softmax" or "sigmoid": what turns logits into probabilities.
        progress: called with (items done, in all).

    Returns:
        scores [n,classes] float32 on the CPU, targets [n] or [n,classes], and what is wrong with items left out.

    Raises:
        ValueError: no item can be read.
    """
    if average not in AVERAGES:
        raise ValueError(f"average must be one of {', '.join(AVERAGES)}, got {average!r}")
    model.eval()
    device = next(model.parameters()).device
    logits, targets, broken = over_items(model, data, device=device, batch=batch, workers=workers, progress=progress)
    if average == "probabilities":
        logits = logits.softmax(-1) if loss == "softmax" else logits.sigmoid()
    return logits.mean(1), targets, broken


def accuracy(scores: Tensor, targets: Tensor, top: int = 1) -> float:
    """Share of items whose class is among the `top` highest scores; scores [n,classes], targets [n].

    Of equal scores the class counts as hit in the share of the places that it can take by chance, so that a network
    that gives the same score to all classes has top / classes.
    """
    own = scores.gather(1, targets[:, None])
    above = (scores > own).sum(1)
    equal = (scores == own).sum(1)
    return float(((top - above).clamp(min=0) / equal).clamp(max=1).double().mean())


def mean_average_precision(scores: Tensor, targets: Tensor) -> float:
    """Mean over the classes of the average precision (area under the precision-recall steps).

    Classes without a positive item are left out, as Charades' official script does. Equal scores share one threshold,
    as in scikit-learn.

    Args:
        scores: [n,classes]. targets: [n,classes], 1 where the class is present.

    Raises:
        ValueError: no class has a positive item.
    """
    found = [
        average_precision(scores[:, c], targets[:, c]) for c in range(scores.shape[1]) if bool(targets[:, c].any())
    ]
    if not found:
        raise ValueError("no class has a positive item, so there is no average precision")
    return sum(found) / len(found)


def average_precision(scores: Tensor, targets: Tensor) -> float:
    """Average precision of one class; scores [n], targets [n] with at least one 1."""
    order = scores.double().argsort(descending=True, stable=True)
    ranked, hits = scores[order], targets[order].double().cumsum(0)
    last = torch.ones(len(ranked), dtype=torch.bool)
    last[:-1] = ranked[1:] != ranked[:-1]
    precision = (hits / torch.arange(1, len(hits) + 1))[last]
    recall = hits[last] / hits[-1]
    gained = torch.diff(recall, prepend=torch.zeros(1, dtype=recall.dtype))
    return float((gained * precision).sum())


def scores_of(scores: Tensor, targets: Tensor) -> dict[str, float]:
    """The usual numbers: top-1 and top-5 for one class an item, mAP for several; in percent."""
    if targets.ndim == 2:
        return {"map": 100 * mean_average_precision(scores, targets)}
    named = {"top1": 100 * accuracy(scores, targets)}
    if scores.shape[1] > 5:
        named["top5"] = 100 * accuracy(scores, targets, 5)
    return named


def evaluator(data: ClipData, **options: Any) -> Callable[[nn.Module], dict[str, float]]:
    """A function of the network that gives its scores on `data`, for the training loop."""

    def evaluate(model: nn.Module) -> dict[str, float]:
        scores, targets, _ = predict(model, data, **options)
        return scores_of(scores, targets)

    return evaluate
