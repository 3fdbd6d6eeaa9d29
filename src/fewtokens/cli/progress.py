"""How far a long loop is: a bar on a terminal, now and then a plain line elsewhere."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from fewtokens.cli.console import log


class _Lines:
    """Progress where there is no terminal: a line each half minute, and each 5 % if that takes a second or more."""

    def __init__(self, title: str) -> None:
        self.title, self.last_time, self.last_part = title, time.monotonic(), 0
        self.first: tuple[float, int] | None = None

    def __call__(self, done: int, total: int | None) -> None:
        now = time.monotonic()
        if self.first is None or done < self.first[1]:
            self.first = now, done  # a run that is resumed does not begin at 0
            return
        part = 20 * done // total if total else 0
        if now - self.last_time < (1 if part > self.last_part else 30):
            return
        self.last_time, self.last_part = now, part
        rate = (done - self.first[1]) / max(now - self.first[0], 1e-9)
        left = f", {timedelta(seconds=round((total - done) / rate))} left" if total and rate else ""
        counted = f"{done} of {total}" if total else str(done)
        log.print(f"{self.title}  {counted}, {rate:.3g} a second{left}", soft_wrap=True, highlight=False, markup=False)


@contextmanager
def progress(title: str, total: int | None, *, bar: bool = True) -> Iterator[Callable[..., None]]:
    """Shows how far a loop is.

    Args:
        title: what is counted. total: how many there are, if that is known.
        bar: False for loops that write to the terminal themselves.

    Returns:
        The function that sets (done, total, title); the last two stay as they are if not given.
    """
    lines = _Lines(title)
    shown = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=log,
        transient=True,
        disable=not (bar and log.is_terminal),
    )
    with shown:
        task = shown.add_task(title, total=total)

        def advance(done: int, total: int | None = total, title: str | None = None) -> None:
            shown.update(task, completed=done, total=total, description=title)
            lines.title = title or lines.title
            if not log.is_terminal:
                lines(done, total)

        yield advance
