"""Grouping rows with the first one to which they are similar."""

from __future__ import annotations

import torch
from torch import Tensor


def first_similar(x: Tensor, kept: Tensor, tau: float) -> Tensor:
    """Returns the first earlier token similar to each, of those that join no other, int64 [R,n].

    A token without one leads, and its entry is itself; that of a token that is not kept is -1.

    Args:
        x: unit vectors [R,n,C].
        kept: bool [R,n].
        tau: minimum cosine to the token that is joined.
    """
    n = x.shape[1]
    earlier = torch.ones(n, n, dtype=torch.bool, device=x.device).tril(-1)
    near = (x @ x.transpose(1, 2) >= tau) & earlier & kept[:, None]
    leads, open_ = torch.zeros_like(kept), kept
    # Each pass decides at least the first undecided token of a row; usually a few passes decide all.
    while bool(open_.any()):
        open_ = open_ & ~(near & leads[:, None]).any(2)
        free = open_ & ~(near & open_[:, None]).any(2)
        leads, open_ = leads | free, open_ & ~free
    joined = (near & leads[:, None]).to(torch.uint8).argmax(2)
    own = torch.arange(n, device=x.device)
    return torch.where(leads, own, joined).masked_fill(~kept, -1)
