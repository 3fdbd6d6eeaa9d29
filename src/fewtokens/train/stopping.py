"""Signals that end a run: recorded during a step, and handled once it is complete."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType, TracebackType
from typing import Any

# Windows has no SIGHUP.
_NAMES = ("SIGINT", "SIGTERM", "SIGHUP")


class Stopped(KeyboardInterrupt):
    """A run was stopped by a signal; its state is saved.

    Attributes:
        code: exit status by the convention of shells: 130 for SIGINT, 143 for SIGTERM, 129 for SIGHUP.
    """

    def __init__(self, message: str, number: int) -> None:
        super().__init__(message)
        self.code = 128 + number


class Break(BaseException):
    """Leaves a block that `Signals.interruptible` marks."""


class Signals:
    """Records SIGINT, SIGTERM and SIGHUP inside a `with` block, and restores the previous handlers at its end.

    Signals that are ignored (nohup) stay ignored. Outside the main thread nothing is recorded. A second SIGINT raises
    KeyboardInterrupt immediately.

    Args:
        single_process: whether this is the only process. If there are several, none leaves a block by itself, because
            the others would wait for it.

    Attributes:
        number: the number of the first signal, 0 before.
    """

    def __init__(self, single_process: bool) -> None:
        self.single_process, self.number = single_process, 0
        self._interruptible = False
        self._before: dict[int, Any] = {}
        self._process = os.getpid()

    def __enter__(self) -> Signals:
        if threading.current_thread() is threading.main_thread():
            for name in _NAMES:
                number = getattr(signal, name, None)
                if number is not None and signal.getsignal(number) not in (signal.SIG_IGN, None):
                    self._before[number] = signal.signal(number, self._record)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    @contextmanager
    def interruptible(self) -> Iterator[None]:
        """Marks a block, such as waiting for data, that a signal may leave by `Break`."""
        try:
            self._interruptible = self.single_process
            if self.number and self.single_process:
                raise Break
            yield
        finally:
            self._interruptible = False

    def _record(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() != self._process:
            # A data-loading process that was forked with this handler. Its parent handles an interrupt.
            if number != signal.SIGINT:
                signal.signal(number, signal.SIG_DFL)
                os.kill(os.getpid(), number)
            return
        if self.number and number == signal.SIGINT and self.single_process:
            raise KeyboardInterrupt
        self.number = self.number or number
        if self._interruptible:
            self._interruptible = False
            raise Break
