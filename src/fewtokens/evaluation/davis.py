"""The measures of DAVIS, J and F (semi-supervised), written from their definition (1704.00675)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from fewtokens.core.shapes import by_shape

# A boundary matches within this share of the frame's diagonal.
_BOUND = 0.008


@dataclass(frozen=True)
class Scores:
    """J and F of one object over the frames that count (not the first, not the last), each float64 [n]."""

    j: Tensor
    f: Tensor

    __repr__ = by_shape

    def numbers(self) -> dict[str, float]:
        """The official columns for one object: means, share of frames above 0.5, first quarter minus last."""
        found: dict[str, float] = {"j_and_f": float((self.j.mean() + self.f.mean()) / 2)}
        for name, values in (("j", self.j), ("f", self.f)):
            found[name] = float(values.mean())
            found[f"{name}_recall"] = float((values > 0.5).double().mean())
            ids = (np.round(np.linspace(1, len(values), 5) + 1e-10) - 1).astype(int)
            quarters = [values[ids[i] : ids[i + 1] + 1].mean() for i in range(4)]
            found[f"{name}_decay"] = float(quarters[0] - quarters[3])
        return found


# The columns of the official table.
TABLE = ("j_and_f_mean", "j_mean", "j_recall", "j_decay", "f_mean", "f_recall", "f_decay")


def official_table(objects: Sequence[dict[str, float]]) -> dict[str, float]:
    """The official table from the numbers of each object (`Scores.numbers`) of all sequences: means over objects."""
    ours = ("j_and_f", "j", "j_recall", "j_decay", "f", "f_recall", "f_decay")
    return {
        name: sum(numbers[key] for numbers in objects) / len(objects) for name, key in zip(TABLE, ours, strict=True)
    }


def score(predicted: Tensor, truth: Tensor, void: Tensor | None = None) -> list[Scores]:
    """J and F of every object, by its number.

    Args:
        predicted: uint8 [T,H,W]. truth: likewise; the objects are those of its first frame.
        void: bool [T,H,W], pixels that do not count; semi-supervised DAVIS has none.

    Raises:
        ValueError: shapes differ, or fewer than three frames (the first and the last do not count).
    """
    if predicted.shape != truth.shape:
        raise ValueError(f"masks of {list(predicted.shape)} for a truth of {list(truth.shape)}")
    if len(truth) < 3:
        raise ValueError(f"{len(truth)} frames: the first and the last do not count, so it takes three")
    objects = int(truth[0].max())
    if void is not None:
        predicted, truth = predicted.masked_fill(void, 0), truth.masked_fill(void, 0)
    found = []
    for number in range(1, objects + 1):
        ours, theirs = predicted[1:-1] == number, truth[1:-1] == number
        found.append(Scores(jaccard(ours, theirs), boundary_f(ours, theirs)))
    return found


def mean_numbers(scores: Sequence[Scores]) -> dict[str, float]:
    """The official columns as means over objects."""
    each = [one.numbers() for one in scores]
    return {name: sum(row[name] for row in each) / len(each) for name in each[0]} if each else {}


def jaccard(predicted: Tensor, truth: Tensor) -> Tensor:
    """Intersection over union of masks bool [T,H,W] by frame, float64 [T]; 1 where both are empty."""
    both, either = _sizes(predicted & truth), _sizes(predicted | truth)
    return torch.where(either == 0, 1.0, both / either.clamp(min=1))


def _sizes(mask: Tensor) -> Tensor:
    """True pixels of each frame, float64 [T]."""
    return mask.flatten(1).view(torch.uint8).sum(1, dtype=torch.int32).double()


def tolerance(height: int, width: int) -> int:
    """Pixels within which boundaries match: 8 at 480x854, 9 at 480x880."""
    return math.ceil(_BOUND * math.hypot(height, width))


def boundary_f(predicted: Tensor, truth: Tensor) -> Tensor:
    """F of the boundaries of masks bool [T,H,W] by frame, float64 [T].

    Harmonic mean of precision and recall, a boundary pixel being right within a disk of `tolerance` pixels of the other
    boundary. With one boundary empty the other's measure is 1 and its own 0; with both F is 1.
    """
    radius = tolerance(*truth.shape[1:])
    ours, theirs = boundary(predicted), boundary(truth)
    # Nothing happens farther from all boundaries than the radius.
    any_row, any_column = ((ours | theirs).any(0).any(axis) for axis in (1, 0))
    if not bool(any_row.any()):
        return torch.ones(len(truth), dtype=torch.float64)
    rows, columns = (torch.nonzero(line).squeeze(1) for line in (any_row, any_column))
    window = (
        slice(None),
        slice(max(0, int(rows[0]) - radius), int(rows[-1]) + radius + 1),
        slice(max(0, int(columns[0]) - radius), int(columns[-1]) + radius + 1),
    )
    ours, theirs = ours[window], theirs[window]
    found, wanted = _sizes(ours), _sizes(theirs)
    right, hit = _sizes(ours & dilate(theirs, radius)), _sizes(theirs & dilate(ours, radius))
    precision = torch.where(found == 0, 1.0, right / found.clamp(min=1))
    recall = torch.where(wanted == 0, 1.0, hit / wanted.clamp(min=1))
    total = precision + recall
    return torch.where(total == 0, 0.0, 2 * precision * recall / total.clamp(min=1e-300))


def boundary(mask: Tensor) -> Tensor:
    """Pixels that differ from the one right, below, or right below; bool [T,H,W]. The last row and column look along
    themselves, the last pixel is never a boundary."""
    edge = torch.zeros_like(mask)
    edge[:, :, :-1] |= mask[:, :, :-1] ^ mask[:, :, 1:]
    edge[:, :-1] |= mask[:, :-1] ^ mask[:, 1:]
    edge[:, :-1, :-1] |= mask[:, :-1, :-1] ^ mask[:, 1:, 1:]
    return edge


def dilate(mask: Tensor, radius: int) -> Tensor:
    """Pixels within a disk of this radius of a True one; bool [T,H,W]."""
    H, W = mask.shape[1:]
    counts = F.pad(mask.to(torch.int32).cumsum(2, dtype=torch.int32), (radius + 1, radius))
    counts[:, :, radius + 1 + W :] = counts[:, :, radius + W : radius + W + 1]
    out = torch.zeros_like(mask)
    for dy in range(radius + 1):
        half = math.isqrt(radius**2 - dy**2)
        wide = counts[:, :, radius + 1 + half : radius + 1 + half + W] > counts[:, :, radius - half : radius - half + W]
        out[:, dy:] |= wide[:, : H - dy]
        out[:, : H - dy] |= wide[:, dy:]
    return out
