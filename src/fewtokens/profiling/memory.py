"""Memory that a network needs: what a forward pass keeps for the backward pass, and the most that is alive at once."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter


def activation_bytes(model: nn.Module, *inputs: Tensor) -> int:
    """Bytes that one forward pass keeps for its backward pass, parameters and inputs left out.

    Works on tensors without memory ("meta") too. Each storage counts once.
    """
    # A storage is known by its object, for one without memory has no address.
    own = {value.untyped_storage()._cdata for value in (*model.parameters(), *model.buffers(), *inputs)}
    kept: dict[int, tuple[Tensor, int]] = {}

    def pack(value: Tensor) -> Tensor:
        storage = value.untyped_storage()
        if storage._cdata not in own:
            kept[storage._cdata] = (value, storage.nbytes())
        return value

    with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(pack, lambda value: value):
        out = model(*inputs)
        del out
    return sum(size for _, size in kept.values())


def peak_memory(run: Callable[[], Any], device: torch.device) -> int:
    """Bytes of tensors that are alive at most while `run()` runs, beyond those before it.

    On CUDA what its allocator says; elsewhere the storages that operations give out (what an operation needs inside is
    not seen).
    """
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        run()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before
    with _Alive() as alive:
        run()
    return alive.peak


class _Alive(TorchDispatchMode):
    """Follows storages from the operation that made them to their end."""

    def __init__(self) -> None:
        super().__init__()
        self.sizes: dict[int, int] = {}
        self.now = self.peak = 0

    def _gone(self, key: int) -> None:
        self.now -= self.sizes.pop(key)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = {t.untyped_storage()._cdata for t in tree_iter((args, kwargs)) if isinstance(t, Tensor)}
        out = func(*args, **(kwargs or {}))
        for tensor in tree_iter(out):
            if isinstance(tensor, Tensor):
                storage = tensor.untyped_storage()
                key = storage._cdata
                if key not in given and key not in self.sizes:
                    self.sizes[key] = storage.nbytes()
                    self.now += storage.nbytes()
                    self.peak = max(self.peak, self.now)
                    weakref.finalize(storage, self._gone, key)
        return out
