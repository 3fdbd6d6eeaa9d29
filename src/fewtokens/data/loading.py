"""Loads batches in worker processes, with a one-line error if a worker dies, hangs or runs out of memory."""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from types import TracebackType
from typing import Any

from torch import Tensor
from torch.utils.data import DataLoader, Dataset, default_collate, get_worker_info

# Seconds without a batch after which the workers count as stuck, and seconds between two checks.
TIMEOUT = 1800.0
_POLL = 5.0


class LoadingError(ValueError):
    """The data workers failed. Everything computed before is valid."""


def load_batches(
    data: Dataset[Any],
    *,
    workers: int,
    collate: Callable[[Sequence[Any]], dict[str, Any]] | None = None,
    batch: int = 1,
    sampler: Iterable[Any] | None = None,
    pin: bool = False,
) -> Iterator[dict[str, Any]]:
    """Yields the batches of a dataset, in order.

    Args:
        data: the dataset, indexed by the keys of `sampler`.
        workers: the number of worker processes; 0 loads in the main process.
        collate: combines samples into a batch, a dict. Default: that of torch.
        batch: samples per batch, in the order of the dataset.
        sampler: yields the keys of each batch, instead of `batch`.
        pin: copy batches to pinned memory for faster transfer to the GPU.

    Raises:
        LoadingError: one line: a worker was killed, memory or shared memory is full, or there was no data for half an
            hour.
    """
    order: dict[str, Any] = {"batch_size": batch} if sampler is None else {"batch_sampler": sampler}
    loader = DataLoader(
        data,
        **order,
        num_workers=workers,
        collate_fn=_SharedCollate(collate or default_collate),
        pin_memory=pin,
        worker_init_fn=_silence_disconnects,
        timeout=min(_POLL, TIMEOUT) if workers else 0,
    )
    batches: Iterator[dict[str, Any]] | None = None
    with ExitStack() as stack:
        try:
            batches = iter(loader)
            stack.enter_context(_default_sigchld())
            waited = 0.0
            while True:
                try:
                    current = next(batches)
                except StopIteration:
                    return
                except RuntimeError as error:
                    waited += _POLL
                    if "timed out" in str(error) and waited < TIMEOUT:
                        continue
                    raise
                waited = 0.0
                yield current
        except (RuntimeError, OSError, EOFError, MemoryError) as error:
            if workers and (message := _explain(error)):
                # The traceback keeps the loader alive, and as long as it lives torch raises for its dead worker
                # anywhere in the program.
                raise LoadingError(message) from error.with_traceback(None)
            raise
        finally:
            batches = None


@contextmanager
def _default_sigchld() -> Iterator[None]:
    """Removes torch's SIGCHLD handler, which raises at an arbitrary point of the program when a worker dies.

    A dead worker is detected at the next batch instead.
    """
    handler = signal.getsignal(signal.SIGCHLD) if hasattr(signal, "SIGCHLD") else None
    replace = getattr(handler, "__module__", "").startswith("torch.") and (
        threading.current_thread() is threading.main_thread()
    )
    if replace:
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    try:
        yield
    finally:
        if replace:
            signal.signal(signal.SIGCHLD, handler)


def _silence_disconnects(worker: int) -> None:
    """Keeps a worker from printing a traceback if the main process stops while receiving a batch."""
    default = sys.excepthook

    def hook(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        if not isinstance(error, ConnectionError | EOFError):
            default(kind, error, trace)

    sys.excepthook = hook


class _SharedCollate:
    """Collates and moves the tensors to shared memory, where errors still reach the main process.

    If the queue between the processes does this instead, a batch that does not fit is dropped and waited for forever.
    """

    def __init__(self, collate: Callable[[Any], dict[str, Any]]) -> None:
        self.collate = collate

    def __call__(self, samples: Sequence[Any]) -> dict[str, Any]:
        batch = self.collate(samples)
        if get_worker_info() is not None:
            for value in batch.values():
                if isinstance(value, Tensor):
                    value.share_memory_()
        return batch


_KILLED = "a data worker was killed, possibly because the system is out of memory"
# Parts of the messages of torch and the system -> our message. Errors with any other message are raised unchanged.
_MESSAGES = (
    (("shared memory", "/torch_", "Bus error"),
     "shared memory (/dev/shm) is too small for the prefetched batches; enlarge it (docker: --shm-size)"),
    (("Too many open files", "ancdata"), "too many open files; raise the limit (ulimit -n)"),
    (("t allocate memory", "MemoryError", "Cannot allocate memory", "out of memory"),
     "out of memory for the prefetched batches"),
    (("killed by signal", "exited unexpectedly"), _KILLED),
    (("timed out after",), f"no data for {TIMEOUT / 60:.0f} minutes; is the disk or the network stuck?"),
)  # fmt: skip


def _explain(error: BaseException) -> str:
    """The one-line message of a worker failure, or "" if the error comes from the dataset."""
    text = f"{type(error).__name__} {error}"
    message = next((message for parts, message in _MESSAGES if any(part in text for part in parts)), "")
    if not message and isinstance(error, OSError | EOFError) and "Caught" not in text:
        message = _KILLED  # while it sent a batch
    return f"{message}. Use fewer workers or a smaller batch; workers=0 loads in the main process" if message else ""
