"""INTP: encodes more frames than an encoder accepts as interleaved subsets, and extends the range of positions."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def split_subsets(frames: Tensor, subsets: int) -> list[Tensor]:
    """Splits frames [T,...] into subsets i, i + m, i + 2m, ... of m = `subsets`, each of which spans the whole video.

    Raises:
        ValueError: there are fewer frames than subsets.
    """
    if not 1 <= subsets <= len(frames):
        raise ValueError(f"subsets must be in 1..{len(frames)}, the number of frames, got {subsets}")
    return [frames[start::subsets] for start in range(subsets)]


def interleave(parts: Sequence[Tensor]) -> Tensor:
    """Returns the features of subsets in the order of time; the inverse of `split_subsets` if one frame has one row."""
    order = torch.cat([torch.arange(len(part)) * len(parts) + start for start, part in enumerate(parts)])
    return torch.cat(list(parts))[order.argsort()]


def extended_rope_base(base: float, factor: float, dim: int) -> float:
    """Returns the base of rotary positions for sequences that are `factor` times as long: base * factor^(d / (d - 2)).

    Args:
        base: base of the model, such as 10000.
        factor: new length / trained length, at least 1.
        dim: d, channels of a head, at least 4.
    """
    return base * factor ** (dim / (dim - 2))
