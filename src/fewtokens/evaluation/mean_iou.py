"""Mean intersection over union of classes, as VIP counts it (1808.00661)."""

from __future__ import annotations

import torch
from torch import Tensor

# The classes of VIP; 0 is the background.
VIP_CLASSES = (
    "background", "hat", "hair", "gloves", "sunglasses", "upper clothes", "dress", "coat", "socks", "pants",
    "torso skin", "scarf", "skirt", "face", "left arm", "right arm", "left leg", "right leg", "left shoe", "right shoe",
)  # fmt: skip


def confusion(predicted: Tensor, truth: Tensor, classes: int = len(VIP_CLASSES)) -> Tensor:
    """How many pixels of each class (rows) were taken for which (columns), int64 [classes,classes].

    Pixels whose truth is none of the classes do not count.

    Args:
        predicted, truth: integers of one shape.

    Raises:
        ValueError: shapes differ, or something is predicted that is no class.
    """
    if predicted.shape != truth.shape:
        raise ValueError(f"masks of {list(predicted.shape)} for a truth of {list(truth.shape)}")
    if predicted.numel() and int(predicted.max()) >= classes:
        raise ValueError(f"class {int(predicted.max())} was predicted, there are {classes}")
    counts = truth < classes
    pairs = truth[counts].long() * classes + predicted[counts].long()
    return torch.bincount(pairs, minlength=classes**2).reshape(classes, classes)


def mean_iou(matrix: Tensor) -> float:
    """Mean over the classes, the background too, of diagonal / (row + column - diagonal); in percent.

    Classes that neither are there nor were predicted are left out.
    """
    both = matrix.diagonal().double()
    return float((100 * both / (matrix.sum(0) + matrix.sum(1) - both)).nanmean())
