"""Whether an error says that memory is full."""

from __future__ import annotations

import torch


def is_out_of_memory(error: BaseException) -> bool:
    """Of the GPU or of the machine; torch has no type of its own for the latter."""
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or "can't allocate memory" in str(error)
