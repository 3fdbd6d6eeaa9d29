"""Connected components of similar tokens on tensors, without a full matrix of all pairs."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

# Similarities are computed in blocks of at most this many entries (16 MiB in float32).
_MAX_BLOCK_ENTRIES = 1 << 22


def components(lowest: Callable[[Tensor], Tensor], mask: Tensor) -> Tensor:
    """The smallest index in each token's component, int64 [B,N]; each padded slot is a separate component.

    Labels propagate along edges and along themselves (pointer jumping) until nothing changes, in about the logarithm of
    the longest path.

    Args:
        lowest: maps labels [B,N] to the lowest label among each token's neighbors and itself, [B,N].
        mask: bool [B,N], True for real tokens.
    """
    label = torch.arange(mask.shape[1], device=mask.device).expand(mask.shape)
    while True:
        # Hook the root of every tree to the lowest label next to any of its members, then shorten the paths.
        neighbor_label = torch.where(mask, lowest(label), label)
        root = label.scatter_reduce(1, label, neighbor_label, "amin", include_self=True)
        while True:
            jumped = root.gather(1, root)
            if bool((jumped == root).all()):
                break
            root = jumped
        new_label = root.gather(1, label)
        if bool((new_label == label).all()):
            return label
        label = new_label


def cosine_components(x: Tensor, mask: Tensor, tau: Tensor) -> Tensor:
    """Components of tokens connected by a cosine above tau.

    Args:
        x: [B,N,D].
        mask: bool [B,N].
        tau: [B].
    """
    x = F.normalize(x.float(), dim=2)
    B, N, _ = x.shape
    block = max(1, _MAX_BLOCK_ENTRIES // (B * N))

    def lowest(label: Tensor) -> Tensor:
        rows = []
        for block_rows in x.split(block, 1):
            connected = ((block_rows @ x.transpose(1, 2)).clamp(max=1) > tau[:, None, None]) & mask[:, None]
            rows.append(torch.where(connected, label[:, None], N).amin(2))
        return torch.minimum(torch.cat(rows, 1), label)

    return components(lowest, mask)
