"""Attention masks for layers that see fewer columns than the model's own mask has."""

from __future__ import annotations

import torch
from torch import Tensor


def narrow(mask: Tensor | None, rows: Tensor, keys: Tensor, *, first: int, flash: bool, padded: bool) -> Tensor | None:
    """The mask of some queries and keys out of the model's own.

    Args:
        mask: as the model gives it to its layers: None (causal, no padding), [B,K], or [B,heads,Q,K] of bool or to add.
        rows: int64 [B,q], columns of the queries; -1 is padding.
        keys: int64 [B,n], columns of the keys; -1 is padding.
        first: the column of the mask's first row.
        flash: a flash kernel, which takes [B,n] if there is padding.
        padded: some of the keys are padding.

    Returns:
        None wherever it may be, so that fused kernels stay.

    Raises:
        ValueError: a mask of another kind (flex attention).
    """
    real = keys >= 0
    if mask is None:
        if not padded and (flash or rows.shape[1] in (1, keys.shape[1])):
            return None
        if flash:
            return real
        return _open(real[:, None] & (keys[:, None] <= rows[..., None]), rows)[:, None]
    if not isinstance(mask, Tensor) or mask.ndim not in (2, 4):
        raise ValueError("methods inside a language model know masks of sdpa, eager and flash attention, no others")
    if mask.ndim == 2:
        return mask.expand(len(keys), -1).gather(1, keys.clamp(min=0)).bool() & real
    mask = mask.expand(len(keys), -1, -1, -1)
    batch = torch.arange(len(keys), device=mask.device)[:, None, None]
    part = mask[batch, :, (rows - first).clamp(min=0)[..., None], keys.clamp(min=0)[:, None]].permute(0, 3, 1, 2)
    if mask.dtype == torch.bool:
        return _open(part & real[:, None, None], rows[:, None]).contiguous()
    return part.masked_fill(~real[:, None, None], torch.finfo(mask.dtype).min).contiguous()


def _open(allowed: Tensor, rows: Tensor) -> Tensor:
    """Padding may see anything, since a softmax over nothing is not a number; nobody sees padding."""
    return allowed | (rows < 0)[..., None]
