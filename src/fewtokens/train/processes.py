"""The end of a process of several."""

from __future__ import annotations

import os
import sys

import torch.distributed as dist


def end_process() -> None:
    """Ends a process of a run under `torchrun` that went well; does nothing outside of a group of processes.

    The group is destroyed once all have come this far, and the process ends without tearing Python down: DTensor's
    caches keep gloo's group alive, and a thread of it that frees a tensor while Python is torn down aborts the process
    ("terminate called without an active exception", pytorch/pytorch#179291), so that `torchrun` would report a run
    that is whole as failed.
    """
    if not (dist.is_available() and dist.is_initialized()):
        return
    dist.barrier()
    dist.destroy_process_group()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)
