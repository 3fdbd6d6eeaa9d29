"""The measures of DAVIS, J and F (semi-supervised), implemented from their definition (arXiv 1704.00675)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from fewtokens.core.shapes import shape_repr

# Boundaries match within this fraction of the diagonal of the frame.
_BOUND = 0.008


@dataclass(frozen=True)
class Scores:
    """J and F of one object in each scored frame (all but the first and the last), each float64 [n]."""

    j: Tensor
    f: Tensor

    __repr__ = shape_repr

    def numbers(self) -> dict[str, float]:
        """Returns the official columns for one object.

        Recall is the fraction of frames above 0.5, decay the mean of the first quarter minus that of the last.
        """
        columns: dict[str, float] = {"j_and_f": float((self.j.mean() + self.f.mean()) / 2)}
        for name, values in (("j", self.j), ("f", self.f)):
            columns[name] = float(values.mean())
            columns[f"{name}_recall"] = float((values > 0.5).double().mean())
            ids = (np.round(np.linspace(1, len(values), 5) + 1e-10) - 1).astype(int)
            quarters = [values[ids[i] : ids[i + 1] + 1].mean() for i in range(4)]
            columns[f"{name}_decay"] = float(quarters[0] - quarters[3])
        return columns


# The columns of the official table.
TABLE = ("j_and_f_mean", "j_mean", "j_recall", "j_decay", "f_mean", "f_recall", "f_decay")


def official_table(objects: Sequence[dict[str, float]]) -> dict[str, float]:
    """Computes the official table as means over the objects of all sequences.

    Args:
        objects: `Scores.numbers` of each object.
    """
    keys = ("j_and_f", "j", "j_recall", "j_decay", "f", "f_recall", "f_decay")
    return {
        name: sum(numbers[key] for numbers in objects) / len(objects) for name, key in zip(TABLE, keys, strict=True)
    }


def score(predicted: Tensor, truth: Tensor, void: Tensor | None = None) -> list[Scores]:
    """Computes J and F of every object, in the order of object ids.

    Args:
        predicted: object ids, uint8 [T,H,W].
        truth: ground truth, uint8 [T,H,W]; the objects are those of its first frame.
        void: bool [T,H,W], pixels that do not count; semi-supervised DAVIS has none.

    Raises:
        ValueError: shapes differ, or fewer than three frames (the first and the last do not count).
    """
    if predicted.shape != truth.shape:
        raise ValueError(f"predicted masks have shape {list(predicted.shape)}, the ground truth {list(truth.shape)}")
    if len(truth) < 3:
        raise ValueError(f"J and F require at least 3 frames (the first and the last are not scored), got {len(truth)}")
    objects = int(truth[0].max())
    if void is not None:
        predicted, truth = predicted.masked_fill(void, 0), truth.masked_fill(void, 0)
    scores = []
    for number in range(1, objects + 1):
        mask, target = predicted[1:-1] == number, truth[1:-1] == number
        scores.append(Scores(jaccard(mask, target), boundary_f(mask, target)))
    return scores


def mean_numbers(scores: Sequence[Scores]) -> dict[str, float]:
    """Returns the official columns as means over objects."""
    rows = [score.numbers() for score in scores]
    return {name: sum(row[name] for row in rows) / len(rows) for name in rows[0]} if rows else {}


def jaccard(predicted: Tensor, truth: Tensor) -> Tensor:
    """Intersection over union of masks bool [T,H,W] in each frame, float64 [T]; 1 if both masks are empty."""
    intersection, union = _sizes(predicted & truth), _sizes(predicted | truth)
    return torch.where(union == 0, 1.0, intersection / union.clamp(min=1))


def _sizes(mask: Tensor) -> Tensor:
    """Number of True pixels in each frame, float64 [T]."""
    # Several times faster than one sum along an axis, which converts every pixel to an integer.
    return torch.stack([frame.count_nonzero() for frame in mask]).double()


def tolerance(height: int, width: int) -> int:
    """Pixels within which boundaries match: 8 at 480x854, 9 at 480x880."""
    return math.ceil(_BOUND * math.hypot(height, width))


def boundary_f(predicted: Tensor, truth: Tensor) -> Tensor:
    """F of the boundaries of masks bool [T,H,W] in each frame, float64 [T].

    F is the harmonic mean of precision and recall; a boundary pixel matches if the other boundary is within a disk of
    `tolerance` pixels. If exactly one boundary is empty F is 0, if both are empty F is 1.
    """
    radius = tolerance(*truth.shape[1:])
    edges, target_edges = boundary(predicted), boundary(truth)
    # Crops to the boundaries plus the radius; no pixel beyond matters.
    any_row, any_column = ((edges | target_edges).any(0).any(axis) for axis in (1, 0))
    if not bool(any_row.any()):
        return torch.ones(len(truth), dtype=torch.float64)
    rows, columns = (torch.nonzero(line).squeeze(1) for line in (any_row, any_column))
    window = (
        slice(None),
        slice(max(0, int(rows[0]) - radius), int(rows[-1]) + radius + 1),
        slice(max(0, int(columns[0]) - radius), int(columns[-1]) + radius + 1),
    )
    edges, target_edges = edges[window], target_edges[window]
    num_predicted, num_target = _sizes(edges), _sizes(target_edges)
    correct, recalled = _sizes(edges & dilate(target_edges, radius)), _sizes(target_edges & dilate(edges, radius))
    precision = torch.where(num_predicted == 0, 1.0, correct / num_predicted.clamp(min=1))
    recall = torch.where(num_target == 0, 1.0, recalled / num_target.clamp(min=1))
    total = precision + recall
    return torch.where(total == 0, 0.0, 2 * precision * recall / total.clamp(min=1e-300))


def boundary(mask: Tensor) -> Tensor:
    """Marks pixels that differ from the pixel to the right, below, or diagonally below; bool [T,H,W].

    The last row is compared only to the right, the last column only below; the last pixel is never a boundary.
    """
    edge = torch.zeros_like(mask)
    edge[:, :, :-1] |= mask[:, :, :-1] ^ mask[:, :, 1:]
    edge[:, :-1] |= mask[:, :-1] ^ mask[:, 1:]
    edge[:, :-1, :-1] |= mask[:, :-1, :-1] ^ mask[:, 1:, 1:]
    return edge


def dilate(mask: Tensor, radius: int) -> Tensor:
    """Marks pixels within a disk of this radius around a True pixel; bool [T,H,W]."""
    H = mask.shape[1]
    out, wide, reach = torch.zeros_like(mask), mask.clone(), 0
    # From the farthest lines to the middle one, the disk gets wider, and `wide` grows with it.
    for dy in range(min(radius, H - 1), -1, -1):
        while reach < math.isqrt(radius**2 - dy**2):
            reach += 1
            wide[:, :, reach:] |= mask[:, :, :-reach]
            wide[:, :, :-reach] |= mask[:, :, reach:]
        out[:, dy:] |= wide[:, : H - dy]
        out[:, : H - dy] |= wide[:, dy:]
    return out
