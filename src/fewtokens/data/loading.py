"""Batches from processes that read ahead, and one line where such a process dies, is stuck or finds no memory."""

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

# Seconds without a batch after which the reading processes count as stuck, and between two looks at them.
PATIENCE = 1800.0
_LOOK = 5.0


class LoadingError(ValueError):
    """The processes that read data failed; nothing is wrong with what was computed until then."""


def load_batches(
    data: Dataset[Any],
    *,
    workers: int,
    collate: Callable[[Sequence[Any]], dict[str, Any]] | None = None,
    batch: int = 1,
    sampler: Iterable[Any] | None = None,
    pin: bool = False,
) -> Iterator[dict[str, Any]]:
    """The batches of a dataset, in order.

    Args:
        data: indexed by what `sampler` gives.
        workers: processes that read ahead; 0 reads in this one.
        collate: samples to a batch, a dict; torch's own where None.
        batch: samples of each, in the order of the dataset; or
        sampler: gives the keys of each batch.
        pin: into memory from which a GPU copies faster.

    Raises:
        LoadingError: one line: a process was killed, memory or shared memory is full, nothing came for half an hour.
    """
    order: dict[str, Any] = {"batch_size": batch} if sampler is None else {"batch_sampler": sampler}
    loader = DataLoader(
        data,
        **order,
        num_workers=workers,
        collate_fn=_Shared(collate or default_collate),
        pin_memory=pin,
        worker_init_fn=_quiet_end,
        timeout=min(_LOOK, PATIENCE) if workers else 0,
    )
    batches: Iterator[dict[str, Any]] | None = None
    with ExitStack() as quiet:
        try:
            batches = iter(loader)
            quiet.enter_context(_no_surprise())
            waited = 0.0
            while True:
                try:
                    batch_now = next(batches)
                except StopIteration:
                    return
                except RuntimeError as error:
                    waited += _LOOK
                    if "timed out" in str(error) and waited < PATIENCE:
                        continue
                    raise
                waited = 0.0
                yield batch_now
        except (RuntimeError, OSError, EOFError, MemoryError) as error:
            if workers and (said := _in_one_line(error)):
                # The frames of this error hold the loader. While it lives torch raises for its dead process anywhere.
                raise LoadingError(said) from error.with_traceback(None)
            raise
        finally:
            batches = None


@contextmanager
def _no_surprise() -> Iterator[None]:
    """Keeps torch from raising wherever the program happens to be, in the middle of a step too, when a process dies.

    A dead process is found when the next batch is asked for.
    """
    handler = signal.getsignal(signal.SIGCHLD) if hasattr(signal, "SIGCHLD") else None
    ours = getattr(handler, "__module__", "").startswith("torch.") and (
        threading.current_thread() is threading.main_thread()
    )
    if ours:
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    try:
        yield
    finally:
        if ours:
            signal.signal(signal.SIGCHLD, handler)


def _quiet_end(number: int) -> None:
    """Lets a process that reads data say nothing of a reader that was stopped while it was handed a batch."""
    usual = sys.excepthook

    def hook(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        if not isinstance(error, ConnectionError | EOFError):
            usual(kind, error, trace)

    sys.excepthook = hook


class _Shared:
    """Collates, and lays the tensors into shared memory while errors still reach the reader.

    Left to the queue between the processes, a batch that does not fit in there is dropped and waited for.
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


_KILLED = "a process that reads data was killed, as by a system that is out of memory"
# What torch and the system say -> what is wrong. Whatever else they say is raised as it is.
_SAID = (
    (("shared memory", "/torch_", "Bus error"),
     "no room left in shared memory (/dev/shm) for the batches that are read ahead; enlarge it (docker: --shm-size)"),
    (("Too many open files", "ancdata"), "too many open files; raise the limit (ulimit -n)"),
    (("t allocate memory", "MemoryError", "Cannot allocate memory", "out of memory"),
     "no memory left for the batches that are read ahead"),
    (("killed by signal", "exited unexpectedly"), _KILLED),
    (("timed out after",), f"no data came for {PATIENCE / 60:.0f} minutes; is the disk or the network stuck?"),
)  # fmt: skip


def _in_one_line(error: BaseException) -> str:
    """What is wrong, or "" where it is an error of the dataset."""
    text = f"{type(error).__name__} {error}"
    meant = [meaning for marks, meaning in _SAID if any(mark in text for mark in marks)]
    if not meant and isinstance(error, OSError | EOFError) and "Caught" not in text:
        meant = [_KILLED]  # while it handed over a batch
    return f"{meant[0]}. Fewer workers or a smaller batch need less; workers=0 reads in one process" if meant else ""
