"""`map_ahead`: applies a function to the next items in threads while the caller works on the last one."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from itertools import repeat, takewhile
from threading import Event
from typing import Any, TypeVar, cast

import torch

T = TypeVar("T")
R = TypeVar("R")
Check = Callable[..., None]


class StoppedError(Exception):
    """Raised in a thread of `map_ahead` that is no longer needed."""


@contextmanager
def map_ahead(function: Callable[[T, Check], R], items: Iterable[T], threads: int) -> Iterator[Iterator[R]]:
    """Applies a function to items in threads, ahead of the caller.

        with map_ahead(lambda path, check: read(path, progress=check), paths, threads=2) as videos:
            for video in videos:
                tokens = pipeline(video)

    At the end of the `with` block, also after an error or Ctrl-C, items that have not started are dropped, and the
    block waits for those that have.

    Args:
        function: called in a thread with an item and `check`. `check` accepts any arguments, so that it can be passed
            as `progress`; it raises an exception that ends the function once its result is no longer needed.
        items: read in the thread of the caller, one at a time.
        threads: number of threads, and of results that may wait while the caller works on another.

    Yields:
        An iterator over the results in the order of the items; it raises the error of a function when it gets there.
    """
    stop = Event()

    def check(*_: Any) -> None:
        if stop.is_set():
            raise StoppedError

    def results() -> Iterator[R]:
        waiting: deque[Future[R]] = deque()
        for item in items:
            waiting.append(pool.submit(function, item, check))
            if len(waiting) > threads:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()

    # The current GPU is that of a thread; those of the pool get that of the caller.
    device = torch.cuda.current_device() if torch.cuda.is_initialized() else None
    prepare = None if device is None else partial(torch.cuda.set_device, device)
    with ThreadPoolExecutor(threads, initializer=prepare) as pool:
        try:
            yield results()
        finally:
            stop.set()
            pool.shutdown(wait=False, cancel_futures=True)


@contextmanager
def iterate_ahead(items: Iterable[T]) -> Iterator[Iterator[T]]:
    """Iterates in a thread, one item ahead of the caller; see `map_ahead`."""
    iterator, end = iter(items), object()
    with map_ahead(lambda *_: next(iterator, end), repeat(None), threads=1) as results:
        yield cast(Iterator[T], takewhile(lambda item: item is not end, results))


def reading_threads() -> int:
    """Returns how many videos to read at a time: one per thread of PyTorch, but at most 4, to save memory."""
    return min(torch.get_num_threads(), 4)
