"""Connected components on tensors: which tokens hang together by likeness, without a table of all pairs."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

# Likenesses are taken in blocks of at most this many entries (16 MiB in float32).
_ENTRIES_AT_ONCE = 1 << 22


def components(lowest: Callable[[Tensor], Tensor], mask: Tensor) -> Tensor:
    """The smallest member of each token's component, int64 [B,N]; padded slots are their own.

    Labels run along edges and along themselves (pointer jumping) until nothing changes, which takes about the
    logarithm of the longest path.

    Args:
        lowest: labels [B,N] to the lowest label among each token's neighbors and itself, [B,N].
        mask: bool [B,N].
    """
    label = torch.arange(mask.shape[1], device=mask.device).expand(mask.shape)
    while True:
        # Hook the root of every tree to the lowest label that any of its members sees, then shorten the paths.
        seen = torch.where(mask, lowest(label), label)
        root = label.scatter_reduce(1, label, seen, "amin", include_self=True)
        while True:
            jumped = root.gather(1, root)
            if bool((jumped == root).all()):
                break
            root = jumped
        joined = root.gather(1, label)
        if bool((joined == label).all()):
            return label
        label = joined


def by_cosine(x: Tensor, mask: Tensor, tau: Tensor) -> Tensor:
    """Components of tokens whose cosine exceeds tau.

    Args:
        x: [B,N,D]. mask: bool [B,N]. tau: [B].
    """
    x = F.normalize(x.float(), dim=2)
    B, N, _ = x.shape
    block = max(1, _ENTRIES_AT_ONCE // (B * N))

    def lowest(label: Tensor) -> Tensor:
        rows = []
        for part in x.split(block, 1):
            near = ((part @ x.transpose(1, 2)).clamp(max=1) > tau[:, None, None]) & mask[:, None]
            rows.append(torch.where(near, label[:, None], N).amin(2))
        return torch.minimum(torch.cat(rows, 1), label)

    return components(lowest, mask)
