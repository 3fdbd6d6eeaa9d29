"""`fewtokens ask --stream`: answers questions while a stream runs."""

from __future__ import annotations

import queue
import re
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape

from fewtokens.cli.console import log, note, out
from fewtokens.cli.options import INPUT, METHOD, OUTPUT
from fewtokens.cli.tables import print_json

if TYPE_CHECKING:
    from fewtokens.llm import Answer, StreamSession
    from fewtokens.video import Video

_STOPPED = "stopped"
_WITH_SECOND = re.compile(r"(\d+(?:\.\d+)?)[\t ]+(\S.*)")


@dataclass(frozen=True)
class StreamOptions:
    """A stream that is asked about while it runs."""

    stream: Annotated[
        str | None,
        typer.Option(
            "--stream",
            metavar="SOURCE",
            help="A file, read as if it were live, a camera such as /dev/video0, or a URL, instead of VIDEO.",
            rich_help_panel=INPUT,
        ),
    ] = None
    trigger: Annotated[
        float | None,
        typer.Option(
            "--trigger",
            metavar="Q",
            help="With --stream: answer the last question again when the scene changes, at about this fraction of the "
            "frames.",
            rich_help_panel=METHOD,
        ),
    ] = None
    resume: Annotated[
        Path | None,
        typer.Option(
            "--resume", metavar="FILE", help="With --stream: continue from a snapshot.", rich_help_panel=INPUT
        ),
    ] = None
    snapshot: Annotated[
        Path | None,
        typer.Option(
            "--snapshot",
            metavar="FILE",
            help="With --stream: write the state at the end, a .safetensors file.",
            rich_help_panel=OUTPUT,
        ),
    ] = None


@dataclass(frozen=True)
class Question:
    """A question, and the second of the stream at which it is asked; None for the end."""

    text: str
    second: float | None = None

    @staticmethod
    def parse(line: str) -> Question:
        """Parses "12.5 What happens?", with a tab or spaces after the second, or "What happens?"."""
        match = _WITH_SECOND.fullmatch(line.strip())
        return Question(match[2], float(match[1])) if match else Question(line.strip())


class Terminal:
    """Questions that are typed while the stream runs, read in a thread; `lines` ends with None."""

    def __init__(self) -> None:
        self.lines: queue.Queue[str | None] = queue.Queue()
        self._ended = False
        if sys.stdin.isatty():
            log.print("type a question and Enter; end with Ctrl-D", highlight=False)
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        for line in sys.stdin:
            if line.strip():
                self.lines.put(line.strip())
        self.lines.put(None)

    def questions(self, *, wait: bool) -> Iterator[Question]:
        """Yields the questions typed so far, or with `wait` all until the end of the input."""
        while not self._ended and (wait or not self.lines.empty()):
            line = self.lines.get()
            if line is None:
                self._ended = True
            else:
                yield Question(line)


class StreamRun:
    """A stream, and the questions about it.

    Args:
        session: the session, which may have been restored.
        questions: those with a second are asked when the stream has all frames up to it, others at its end.
        terminal: whether questions are also read from the terminal.
        max_new_tokens: the maximum length of an answer.
        quiet: whether to print nothing.
        say: shows the current activity.
    """

    def __init__(
        self,
        session: StreamSession,
        questions: Sequence[Question],
        *,
        terminal: bool,
        max_new_tokens: int,
        quiet: bool,
        say: Callable[[str | None], None],
    ) -> None:
        self.session, self.max_new_tokens, self.quiet, self.say = session, max_new_tokens, quiet, say
        timed = [question for question in questions if question.second is not None]
        self.timed = sorted(timed, key=lambda question: question.second or 0.0)
        self.final = [question for question in questions if question.second is None]
        self.terminal = Terminal() if terminal else None
        self.last: Question | None = None
        self.answers: list[dict[str, Any]] = []
        self.scenes: list[float] = []
        if session.second is not None and self.timed and (self.timed[0].second or 0.0) < session.second:
            raise ValueError(
                f"a question is due at {self.timed[0].second:g} s, but the stream is resumed at {session.second:g} s"
            )

    def follow(self, frames: Iterator[Video], fps: float) -> bool:
        """Pushes the frames, `fps` per second, and asks the questions; returns whether the stream did not break off.

        The seconds of a resumed stream continue after those of the snapshot.
        """
        with Interruption() as interruption:
            problem = self._push_all(frames, fps, interruption)
        if self.session.second is None:
            raise ValueError(problem or "the stream has no frames")
        if problem is not None:
            self.say(None)
            note("the stream ends:", f"{problem}; the last frame is at {self.session.second:.1f} s")
        self._ask_until(self.session.second + (1 / fps if problem is None else 0.0), before=False)
        for question in self.final:
            self._ask(question)
        self._ask_typed(wait=problem != _STOPPED)
        return problem is None

    def _push_all(self, frames: Iterator[Video], fps: float, interruption: Interruption) -> str | None:
        """Pushes the frames and asks what is due; returns why the stream breaks off, None if it does not."""
        offset = 0.0 if self.session.second is None else self.session.second + 1 / fps
        video, problem = _next(frames, interruption)
        while video is not None and problem is None:
            times = video.times + offset
            self._ask_until(float(times[0]), before=True)
            try:
                scenes = self.session.push(video.frames, times)
            except ValueError as error:
                if self.session.second is None:
                    raise
                problem = str(error)
                break
            self.scenes += scenes
            self.say(f"at {self.session.second:.1f} s")
            if scenes and self.last is not None:
                self._ask(self.last, scene=True)
            self._ask_typed(wait=False)
            video, problem = _next(frames, interruption)
        return problem

    def _ask_typed(self, *, wait: bool) -> None:
        """Asks the questions from the terminal; one that is invalid does not end the stream."""
        for question in () if self.terminal is None else self.terminal.questions(wait=wait):
            try:
                self._ask(question)
            except ValueError as error:
                note("error:", error)

    def _ask_until(self, second: float, *, before: bool) -> None:
        """Asks the questions due up to a second, or only those due before it."""
        while self.timed and self.session.second is not None:
            due = self.timed[0].second
            assert due is not None
            if due > second or (before and due == second):
                return
            self._ask(self.timed.pop(0))

    def _ask(self, question: Question, *, scene: bool = False) -> None:
        self.last = question
        self.say(None)
        if not self.quiet:
            why = " (the scene changes)" if scene else ""
            heading = f"{self.session.second:.1f} s{why}: {question.text}"
            out.print(f"[bold]{escape(heading)}[/bold]", soft_wrap=True, highlight=False)
        answer = self.session.ask(question.text, self.max_new_tokens, None if self.quiet else write)
        if not self.quiet:
            write("\n")
        self.answers.append(self._row(question, answer, scene))

    def _row(self, question: Question, answer: Answer, scene: bool) -> dict[str, Any]:
        return {
            "second": self.session.second,
            "due": question.second,
            "scene_change": scene,
            **answer_row(question.text, answer),
            "state_bytes": self.session.nbytes,
        }

    def finish(self, facts: dict[str, Any], complete: bool, as_json: bool) -> None:
        """Prints the results as JSON, or what is left; exits with code 2 if questions were not asked."""
        if not self.answers and not self.timed:
            raise ValueError("no question; give one after --stream SOURCE, in --questions FILE, or on the terminal")
        left = [{"due": question.second, "question": question.text} for question in self.timed]
        if as_json:
            state = {"frames": self.session.frames, "second": self.session.second, "state_bytes": self.session.nbytes}
            print_json(
                {**facts, **state, "complete": complete, "scenes": self.scenes, "answers": self.answers, "open": left}
            )
        else:
            log.print(f"{self.session.frames} frames, {self.session.nbytes:,} bytes of state", highlight=False)
        if left:
            note("not answered:", "; ".join(f"{each['due']:g} s {each['question']}" for each in left))
            raise typer.Exit(2)


def answer_row(question: str, answer: Answer) -> dict[str, Any]:
    """An answer and its cost as plain values, for `--json`."""
    return {
        "question": question,
        "answer": answer.text,
        "visual_tokens": answer.tokens,
        "layer_tokens": answer.layer_tokens,
        "cells": answer.cells,
        "prompt_tokens": answer.prompt_tokens,
        "new_tokens": answer.new_tokens,
        "first_token_seconds": answer.first_token,
        "tokens_per_second": answer.speed,
    }


class Interruption:
    """Ctrl-C ends the wait for a frame at once, but lets the session finish the frame or the answer it works on.

    Its state changes in place, so that it could not be saved otherwise. A second Ctrl-C raises.
    """

    def __init__(self) -> None:
        self.stopped = self.waiting = False

    def __enter__(self) -> Interruption:
        self._main = threading.current_thread() is threading.main_thread()  # no other receives signals
        if self._main:
            self._before = signal.signal(signal.SIGINT, self._handle)
        return self

    def __exit__(self, *_: object) -> None:
        if self._main:
            signal.signal(signal.SIGINT, self._before)

    def _handle(self, number: int, frame: Any) -> None:
        if self.waiting or self.stopped:
            raise KeyboardInterrupt
        self.stopped = True


def _next(frames: Iterator[Video], interruption: Interruption) -> tuple[Video | None, str | None]:
    """Returns the next frame, or None at the end, and why the stream breaks off."""
    from fewtokens.video import VideoError

    if interruption.stopped:
        return None, _STOPPED
    interruption.waiting = True
    try:
        return next(frames, None), None
    except VideoError as error:
        return None, str(error)
    except KeyboardInterrupt:
        return None, _STOPPED
    finally:
        interruption.waiting = False


def write(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()


def frames_of(source: str, fps: float, size: int | None) -> Iterator[Video]:
    """Yields the frames of a file, a folder of images, a device or a URL, one at a time.

    Raises:
        VideoError: the source cannot be opened, or breaks off.
    """
    from fewtokens.video import VideoError, live, stream
    from fewtokens.video.container import is_truncated
    from fewtokens.video.live import is_live

    if is_live(source):
        yield from live(source, fps=fps, size=size)
        return
    path = Path(source)
    cut = path.is_file() and is_truncated(path)
    yield from stream(path, chunk=1, fps=fps, size=size, allow_truncated=cut)
    if cut:
        raise VideoError(f"{source}: the file is cut short")
