"""Ends the processes of a distributed run."""

from __future__ import annotations

import os
import sys

import torch.distributed as dist


def end_process() -> None:
    """Ends a process of a successful run under `torchrun`; does nothing outside a process group.

    The group is destroyed once all processes have arrived, and the process exits without shutting Python down:
    DTensor's caches keep gloo's group alive, and a thread of it that frees a tensor during shutdown aborts the process
    ("terminate called without an active exception", pytorch/pytorch#179291), so that `torchrun` would report a
    successful run as failed.
    """
    if not (dist.is_available() and dist.is_initialized()):
        return
    dist.barrier()
    dist.destroy_process_group()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)
