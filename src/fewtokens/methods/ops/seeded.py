"""Random numbers that depend only on a seed and a position, never on the batch, the padding or the device."""

from __future__ import annotations

import torch
from torch import Tensor

_LOW = 0xFFFFFFFF


def uniform_hash(seed: int, n: int, device: torch.device | str | None = None, *, start: int = 0) -> Tensor:
    """Uniform numbers in [0,1) for positions start..start+n-1, float32 [n].

    The 32-bit finalizer of MurmurHash3 over position and seed, of which 24 bits are used, so that float32 represents
    them exactly. A longer row begins with the shorter one, which a generator's `rand` does not guarantee.
    """
    x = torch.arange(start, start + n, dtype=torch.int64, device=device)
    x = (x * 0x9E3779B1 + (seed & _LOW) * 0x85EBCA77 + 0x165667B1) & _LOW
    for shift, factor in ((16, 0x85EBCA6B), (13, 0xC2B2AE35), (16, 1)):
        x = ((x ^ (x >> shift)) * factor) & _LOW
    return (x >> 8).to(torch.float32) / float(1 << 24)
