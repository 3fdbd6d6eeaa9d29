"""Signals that end a run, noted while a step is computed and heeded where nothing is half done."""

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
    """Leaves a place that `Signals.open` marks."""


class Signals:
    """Notes SIGINT, SIGTERM and SIGHUP from `with` to its end; the handlers of before are put back then.

    Signals that are ignored (nohup) stay ignored. Outside of the main thread nothing is noted. A second SIGINT raises
    KeyboardInterrupt at once.

    Args:
        alone: whether this process runs by itself. Of several, none leaves a place alone: the others would wait for it.

    Attributes:
        number: of the first signal that came, 0 before.
    """

    def __init__(self, alone: bool) -> None:
        self.alone, self.number = alone, 0
        self._open = False
        self._before: dict[int, Any] = {}
        self._process = os.getpid()

    def __enter__(self) -> Signals:
        if threading.current_thread() is threading.main_thread():
            for name in _NAMES:
                number = getattr(signal, name, None)
                if number is not None and signal.getsignal(number) not in (signal.SIG_IGN, None):
                    self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    @contextmanager
    def open(self) -> Iterator[None]:
        """A place, such as waiting for data, that a signal may leave by `Break`."""
        try:
            self._open = self.alone
            if self.number and self.alone:
                raise Break
            yield
        finally:
            self._open = False

    def _note(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() != self._process:
            # A process that reads data and was forked with this handler. An interrupt is for its parent to heed.
            if number != signal.SIGINT:
                signal.signal(number, signal.SIG_DFL)
                os.kill(os.getpid(), number)
            return
        if self.number and number == signal.SIGINT and self.alone:
            raise KeyboardInterrupt
        self.number = self.number or number
        if self._open:
            self._open = False
            raise Break
