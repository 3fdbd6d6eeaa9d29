"""Mean intersection over union of classes, as defined by VIP (arXiv 1808.00661)."""

from __future__ import annotations

import torch
from torch import Tensor

# The classes of VIP; 0 is the background.
VIP_CLASSES = (
    "background", "hat", "hair", "gloves", "sunglasses", "upper clothes", "dress", "coat", "socks", "pants",
    "torso skin", "scarf", "skirt", "face", "left arm", "right arm", "left leg", "right leg", "left shoe", "right shoe",
)  # fmt: skip


def confusion(predicted: Tensor, truth: Tensor, classes: int = len(VIP_CLASSES)) -> Tensor:
    """Computes the confusion matrix: number of pixels by true class (rows) and predicted class (columns).

    Pixels whose true value is not a class do not count.

    Args:
        predicted, truth: integer classes of the same shape.

    Returns:
        int64 [classes,classes].

    Raises:
        ValueError: shapes differ, or a predicted value is not a class.
    """
    if predicted.shape != truth.shape:
        raise ValueError(f"predicted masks have shape {list(predicted.shape)}, the ground truth {list(truth.shape)}")
    if predicted.numel() and int(predicted.max()) >= classes:
        raise ValueError(f"predicted classes must be below {classes}, got {int(predicted.max())}")
    valid = truth < classes
    pairs = truth[valid].long() * classes + predicted[valid].long()
    return torch.bincount(pairs, minlength=classes**2).reshape(classes, classes)


def mean_iou(matrix: Tensor) -> float:
    """Mean over the classes, including the background, of diagonal / (row + column - diagonal); in percent.

    Classes that neither occur nor are predicted are excluded.
    """
    intersection = matrix.diagonal().double()
    return float((100 * intersection / (matrix.sum(0) + matrix.sum(1) - intersection)).nanmean())
