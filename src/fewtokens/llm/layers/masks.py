"""Attention masks for layers that see fewer columns than the model's own mask."""

from __future__ import annotations

import torch
from torch import Tensor


def narrow_mask(
    mask: Tensor | None, rows: Tensor, keys: Tensor, *, first: int, flash: bool, padded: bool
) -> Tensor | None:
    """Cuts the model's own mask to some queries and keys.

    Args:
        mask: as the model passes it to its layers: None (causal, no padding), [B,K] or [B,heads,Q,K], bool or additive.
        rows: int64 [B,q], columns of the queries; -1 is padding.
        keys: int64 [B,n], columns of the keys; -1 is padding.
        first: the column of the mask's first row.
        flash: whether the kernel is flash attention, which takes [B,n] if there is padding.
        padded: whether some of the keys are padding.

    Returns:
        The mask; None wherever possible, so that fused kernels can be used.

    Raises:
        ValueError: a mask of another type (flex attention).
    """
    real = keys >= 0
    if mask is None:
        if not padded and (flash or rows.shape[1] in (1, keys.shape[1])):
            return None
        if flash:
            return real
        return _unmask_padding(real[:, None] & (keys[:, None] <= rows[..., None]), rows)[:, None]
    if not isinstance(mask, Tensor) or mask.ndim not in (2, 4):
        raise ValueError("methods inside a language model support only masks of sdpa, eager and flash attention")
    if mask.ndim == 2:
        return mask.expand(len(keys), -1).gather(1, keys.clamp(min=0)).bool() & real
    mask = mask.expand(len(keys), -1, -1, -1)
    batch = torch.arange(len(keys), device=mask.device)[:, None, None]
    part = mask[batch, :, (rows - first).clamp(min=0)[..., None], keys.clamp(min=0)[:, None]].permute(0, 3, 1, 2)
    if mask.dtype == torch.bool:
        return _unmask_padding(part & real[:, None, None], rows[:, None]).contiguous()
    return part.masked_fill(~real[:, None, None], torch.finfo(mask.dtype).min).contiguous()


def window_mask(mask: Tensor | None, rows: Tensor, keys: Tensor, window: int, real: Tensor | None = None) -> Tensor:
    """The mask of queries after the prompt in a layer with a window, which counts columns of the original prompt.

    Args:
        mask: as the model passes it, of which only the type counts: additive or not.
        rows: int64 [B,q], columns of the queries.
        keys: int64 [B,n], columns of the keys; -1 is padding.
        window: the number of columns that a query sees, itself included.
        real: bool [B,K], columns that are not padding; None if there is no padding.
    """
    distance, known = rows[..., None] - keys[:, None], keys >= 0
    if real is not None:
        known = known & real.gather(1, keys.clamp(min=0))
    # A query that is padding sees itself, since a softmax over nothing is NaN.
    seen = ((known[:, None] & (distance >= 0) & (distance < window)) | (distance == 0))[:, None]
    if mask is None or mask.dtype == torch.bool:
        return seen
    return torch.zeros_like(seen, dtype=mask.dtype).masked_fill(~seen, torch.finfo(mask.dtype).min)


def _unmask_padding(allowed: Tensor, rows: Tensor) -> Tensor:
    """Lets padding see every key, since a softmax over nothing is NaN; no other query sees padding."""
    return allowed | (rows < 0)[..., None]
