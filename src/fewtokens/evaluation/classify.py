"""Scores of classifiers: top-k accuracy, mean average precision, averages over views."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from fewtokens.data import ClipData
from fewtokens.evaluation.items import apply_to_items

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
    """Computes the scores of every item, averaged over its views.

    Args:
        model: maps clips to logits; stays on its device and is set to evaluation mode.
        data: test data; `data.view` specifies the number of clips and crops.
        batch: views per pass.
        workers: number of reading processes.
        average: "logits" (ranks like their sum, which the released ViViT code uses) or "probabilities".
        loss: "softmax" or "sigmoid", the function that maps logits to probabilities.
        progress: called with (items done, total).

    Returns:
        scores [n,classes] float32 on the CPU, targets [n] or [n,classes], and an error message for each skipped item.

    Raises:
        ValueError: no item can be read.
    """
    if average not in AVERAGES:
        raise ValueError(f"average must be one of {', '.join(AVERAGES)}, got {average!r}")
    model.eval()
    device = next(model.parameters()).device
    logits, targets, broken = apply_to_items(
        model, data, device=device, batch=batch, workers=workers, progress=progress
    )
    if average == "probabilities":
        logits = logits.softmax(-1) if loss == "softmax" else logits.sigmoid()
    return logits.mean(1), targets, broken


def accuracy(scores: Tensor, targets: Tensor, top: int = 1) -> float:
    """Fraction of items whose class is among the `top` highest scores; scores [n,classes], targets [n].

    Ties count with the probability that a random order of the equal scores is a hit, so a network that returns the
    same score for all classes has top / classes.
    """
    target_scores = scores.gather(1, targets[:, None])
    above = (scores > target_scores).sum(1)
    equal = (scores == target_scores).sum(1)
    share = ((top - above).clamp(min=0) / equal.clamp(min=1)).clamp(max=1)
    # A score that is not a number is wrong, whatever the others are.
    return float(share.masked_fill(target_scores[:, 0].isnan(), 0).double().mean())


def mean_average_precision(scores: Tensor, targets: Tensor) -> float:
    """Mean over the classes of the average precision (area under the precision-recall steps).

    Classes without a positive item are excluded, as in Charades' official script. Equal scores share one threshold, as
    in scikit-learn.

    Args:
        scores: [n,classes]. targets: [n,classes], 1 if the class is present.

    Raises:
        ValueError: no class has a positive item.
    """
    precisions = [
        average_precision(scores[:, c], targets[:, c]) for c in range(scores.shape[1]) if bool(targets[:, c].any())
    ]
    if not precisions:
        raise ValueError("average precision requires a class with a positive item")
    return sum(precisions) / len(precisions)


def average_precision(scores: Tensor, targets: Tensor) -> float:
    """Average precision of one class; scores [n], targets [n] with at least one 1."""
    order = scores.double().argsort(descending=True, stable=True)
    ranked, hits = scores[order], targets[order].double().cumsum(0)
    last = torch.ones(len(ranked), dtype=torch.bool)
    last[:-1] = ranked[1:] != ranked[:-1]
    precision = (hits / torch.arange(1, len(hits) + 1))[last]
    recall = hits[last] / hits[-1]
    steps = torch.diff(recall, prepend=torch.zeros(1, dtype=recall.dtype))
    return float((steps * precision).sum())


def classification_scores(scores: Tensor, targets: Tensor) -> dict[str, float]:
    """Standard scores in percent: top-1 and top-5 for one class per item, mAP for several classes per item."""
    if targets.ndim == 2:
        return {"map": 100 * mean_average_precision(scores, targets)}
    values = {"top1": 100 * accuracy(scores, targets)}
    if scores.shape[1] > 5:
        values["top5"] = 100 * accuracy(scores, targets, 5)
    return values


def evaluator(data: ClipData, **options: Any) -> Callable[[nn.Module], dict[str, float]]:
    """Returns a function that computes the scores of a network on `data`, for the training loop.

    Args:
        options: arguments of `predict`.
    """

    def evaluate(model: nn.Module) -> dict[str, float]:
        scores, targets, _ = predict(model, data, **options)
        return classification_scores(scores, targets)

    return evaluate
