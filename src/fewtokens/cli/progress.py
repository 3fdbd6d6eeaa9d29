"""Progress of long loops: a bar on a terminal, occasional lines elsewhere."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from fewtokens.cli.console import log


class _Lines:
    """Progress without a terminal: one line every 30 seconds, and every 5 % if that takes a second or more."""

    def __init__(self, title: str) -> None:
        self.title, self.last_time, self.last_step = title, time.monotonic(), 0
        self.first: tuple[float, int] | None = None

    def __call__(self, done: int, total: int | None) -> None:
        now = time.monotonic()
        if self.first is None or done < self.first[1]:
            self.first = now, done  # a resumed run does not begin at 0
            return
        step = 20 * done // total if total else 0
        if now - self.last_time < (1 if step > self.last_step else 30):
            return
        self.last_time, self.last_step = now, step
        rate = (done - self.first[1]) / max(now - self.first[0], 1e-9)
        remaining = f", {timedelta(seconds=round((total - done) / rate))} left" if total and rate else ""
        count = f"{done}/{total}" if total else str(done)
        log.print(f"{self.title}  {count}, {rate:.3g}/s{remaining}", soft_wrap=True, highlight=False, markup=False)


@contextmanager
def progress(title: str, total: int | None, *, bar: bool = True) -> Iterator[Callable[..., None]]:
    """Shows the progress of a loop.

    Args:
        title: what is counted.
        total: the number of items, or None if unknown.
        bar: False for loops that write to the terminal themselves.

    Returns:
        A function that sets (done, total, title); total and title are optional.
    """
    lines = _Lines(title)
    display = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=log,
        transient=True,
        disable=not (bar and log.is_terminal),
    )
    with display:
        task = display.add_task(title, total=total)

        def advance(done: int, total: int | None = total, title: str | None = None) -> None:
            display.update(task, completed=done, total=total, description=title)
            lines.title = title or lines.title
            if not log.is_terminal:
                lines(done, total)

        yield advance
