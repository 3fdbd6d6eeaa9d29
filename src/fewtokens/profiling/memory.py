"""Memory of a network: activations kept for the backward pass, and peak memory."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode


def activation_bytes(model: nn.Module, *inputs: Tensor) -> int:
    """Returns the bytes that a forward pass keeps for the backward pass, excluding parameters and inputs.

    Also works on meta tensors. Each storage counts once.
    """
    with torch.inference_mode(False):  # tensors of inference mode cannot be kept
        inputs = tuple(value.clone() if value.is_inference() else value for value in inputs)
    # Storages are identified by object, because those on the meta device have no address.
    excluded = {value.untyped_storage()._cdata for value in (*model.parameters(), *model.buffers(), *inputs)}
    saved: dict[int, tuple[Tensor, int]] = {}

    def pack(value: Tensor) -> Tensor:
        storage = value.untyped_storage()
        if storage._cdata not in excluded:
            saved[storage._cdata] = (value, storage.nbytes())
        return value

    with (
        torch.inference_mode(False),
        torch.enable_grad(),
        torch.autograd.graph.saved_tensors_hooks(pack, lambda value: value),
    ):
        out = model(*inputs)
        del out
    return sum(size for _, size in saved.values())


def peak_memory(run: Callable[[], Any], device: torch.device) -> int:
    """Returns the peak memory of tensors during `run()`, in bytes above the level before it.

    On CUDA this is the peak of the allocator; elsewhere the sum of the storages that operations return, without memory
    that an operation uses internally.
    """
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        run()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before
    with _LiveStorages() as live:
        run()
    return live.peak


class _LiveStorages(TorchDispatchMode):
    """Tracks storages from the operation that creates them until they are freed."""

    def __init__(self) -> None:
        super().__init__()
        self.sizes: dict[int, int] = {}
        self.now = self.peak = 0

    def _release(self, key: int) -> None:
        self.now -= self.sizes.pop(key)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        for tensor in _tensors(out):
            storage = tensor.untyped_storage()
            key = storage._cdata
            if key in self.sizes or any(key == t.untyped_storage()._cdata for t in _tensors((args, *kwargs.values()))):
                continue
            self.sizes[key] = storage.nbytes()
            self.now += storage.nbytes()
            self.peak = max(self.peak, self.now)
            weakref.finalize(storage, self._release, key)
        return out


def _tensors(value: Any) -> Iterator[Tensor]:
    """The tensors of an operation's arguments or results, which are nested in nothing but lists and tuples."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, list | tuple):
        for part in value:
            yield from _tensors(part)
