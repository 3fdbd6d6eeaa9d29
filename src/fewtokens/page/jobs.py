"""One job at a time in a thread, with progress and cancel."""

from __future__ import annotations

import secrets
import threading
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any


class Canceled(Exception):
    """Raised in the thread of a job at its next report after it was canceled."""


class Busy(ValueError):
    """Raised if a job is started while another one works."""


@dataclass
class Job:
    """A piece of work that a page waits for.

    Attributes:
        id: a random name.
        state: "working", "done", "failed" or "canceled".
        step: the current step, in words.
        done, total: the progress of the step; total is None if unknown.
        texts: text that the job has produced so far, by index.
        error: one line, if it failed.
        result: what it returned.
    """

    id: str = field(default_factory=lambda: secrets.token_urlsafe(12))
    state: str = "working"
    step: str = "starting"
    done: int = 0
    total: int | None = None
    texts: list[str] = field(default_factory=list)
    error: str = ""
    result: Any = None
    start: float = field(default_factory=time.monotonic)
    end: float | None = None
    _cancel: threading.Event = field(default_factory=threading.Event)

    def report(self, step: str, done: int = 0, total: int | None = None) -> None:
        """Sets the step and its progress.

        Raises:
            Canceled: the job was canceled.
        """
        if self._cancel.is_set():
            raise Canceled
        self.step, self.done, self.total = step, done, total

    def counter(self, step: str) -> Callable[[int, int | None], None]:
        """Returns a callback for the progress of a step."""
        return lambda done, total: self.report(step, done, total)

    def cancel(self) -> None:
        self._cancel.set()

    def view(self) -> dict[str, Any]:
        """Returns what the page shows of the job, without its result."""
        return {
            "id": self.id,
            "state": self.state,
            "step": self.step,
            "done": self.done,
            "total": self.total,
            "texts": list(self.texts),
            "error": self.error,
            "seconds": (self.end or time.monotonic()) - self.start,
        }


class Jobs:
    """Runs one job at a time; the latest one can be viewed after its end."""

    def __init__(self) -> None:
        self.latest: Job | None = None
        self._lock = threading.Lock()

    def start(self, work: Callable[[Job], Any]) -> Job:
        """Runs `work(job)` in a thread.

        Raises:
            Busy: another job works.
        """
        with self._lock:
            if self.latest is not None and self.latest.state == "working":
                raise Busy("another job is running; wait for its end or cancel it")
            job = self.latest = Job()
        threading.Thread(target=_run, args=(job, work), daemon=True).start()
        return job

    def get(self, name: str) -> Job:
        """Returns the latest job.

        Raises:
            ValueError: it has another id.
        """
        if self.latest is None or self.latest.id != name:
            raise ValueError("no such job; a newer one has replaced it")
        return self.latest


def _run(job: Job, work: Callable[[Job], Any]) -> None:
    state = "failed"
    try:
        job.result = work(job)
        state = "done"
    except Canceled:
        state = "canceled"
    except (ValueError, OSError) as error:
        job.error = " ".join(str(error).split())
    except Exception as error:
        from fewtokens.train.memory import is_out_of_memory

        if isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and is_out_of_memory(error)):
            job.error = "out of memory; start the page with fewer --frames or a smaller --size"
        else:
            traceback.print_exc()
            job.error = f"internal error ({type(error).__name__}); the terminal of fewtokens page shows it in full"
    job.end = time.monotonic()
    job.state = state  # last, since others read it without a lock
