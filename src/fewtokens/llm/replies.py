"""A list of questions on videos put to a session, one after the other; what was answered is kept in a file."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from fewtokens.llm.session import Answer


class Asked(Protocol):
    """`Session` or `PartsSession`."""

    def ask(self, video: Any, question: str, max_new_tokens: int = 128) -> Answer: ...


@dataclass(frozen=True)
class Reply:
    """A reply, and how many visual tokens it saw; `error` says why a video could not be asked about."""

    id: str
    text: str
    tokens: int
    error: str | None = None


def ask_all(
    session: Asked,
    asked: Sequence[tuple[str, Any, str]],
    *,
    max_new_tokens: int = 32,
    out: Path | None = None,
    request: dict[str, Any] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> list[Reply]:
    """Replies in the order of the questions.

    Args:
        asked: (id, video or what gives it when called, prompt); ids differ.
        out: a .jsonl that is written to as replies come, and that a stopped run goes on from.
        request: what the replies depend on, kept in its first line.
        progress: called with (done, in all).

    Raises:
        ValueError: `out` holds replies to another request, or two questions have one id.
    """
    if len({id for id, _, _ in asked}) < len(asked):
        raise ValueError("two questions have the same id")
    known = _read(out, request or {})
    replies = []
    for number, (id, video, prompt) in enumerate(asked):
        reply = known.get(id)
        if reply is None:
            try:
                answer = session.ask(video() if callable(video) else video, prompt, max_new_tokens)
                reply = Reply(id, answer.text.strip(), answer.tokens)
            except (ValueError, OSError) as error:
                reply = Reply(id, "", 0, " ".join(str(error).split()))
            if out is not None:
                with out.open("a") as file:
                    file.write(json.dumps(vars(reply)) + "\n")
        replies.append(reply)
        if progress is not None:
            progress(number + 1, len(asked))
    return replies


def _read(out: Path | None, request: dict[str, Any]) -> dict[str, Reply]:
    """What a file holds already; begins it where it is not there."""
    if out is None:
        return {}
    if not out.exists():
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(json.dumps({"request": request}) + "\n")
        return {}
    lines = out.read_text().splitlines()
    try:
        made = json.loads(lines[0])["request"]
    except (IndexError, KeyError, TypeError, json.JSONDecodeError):
        raise ValueError(f"{out}: holds no replies of an earlier run; give another --out") from None
    if made != json.loads(json.dumps(request)):
        names = ", ".join(sorted(key for key in made.keys() | request.keys() if made.get(key) != request.get(key)))
        raise ValueError(f"{out}: holds replies of a run with other settings ({names}); give another --out")
    found, whole = {}, [lines[0]]
    for line in lines[1:]:
        try:
            reply = Reply(**json.loads(line))
        except (TypeError, json.JSONDecodeError):
            continue  # the last line of a run that was killed
        found[reply.id] = reply
        whole.append(line)
    if len(whole) < len(lines):
        out.write_text("".join(line + "\n" for line in whole))
    return found
