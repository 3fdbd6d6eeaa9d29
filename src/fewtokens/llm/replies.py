"""Asks a session a list of questions about videos, sequentially, and stores the replies in a file."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fewtokens.core import files
from fewtokens.core.identity import identity
from fewtokens.core.keys import current_keys
from fewtokens.core.plain import conform
from fewtokens.llm.session import Session, VideoPart


@dataclass(frozen=True)
class Reply:
    """A reply and the number of visual tokens that the model saw, or the `error` that prevented it.

    `source` is the identity of the video's file or folder, if it is one.
    """

    id: str
    text: str
    tokens: int
    error: str | None = None
    source: str | None = None


def ask_all(
    session: Session,
    questions: Sequence[tuple[str, Any, str]],
    *,
    max_new_tokens: int = 32,
    out: Path | None = None,
    request: dict[str, Any] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> list[Reply]:
    """Returns replies in the order of the questions.

    Args:
        questions: (id, video or a function that returns it, prompt); ids are unique.
        out: a .jsonl file to which replies are appended, and from which an interrupted run resumes.
        request: the settings that replies depend on, stored in the first line.
        progress: called with (done, total).

    Raises:
        ValueError: `out` contains replies to another request, or about a video that has changed since; or two questions
            have the same id.
    """
    if len({id for id, _, _ in questions}) < len(questions):
        raise ValueError("two questions have the same id")
    earlier = _read(out, request or {})
    replies = []
    for index, (id, video, prompt) in enumerate(questions):
        reply = earlier.get(id)
        source = None if callable(video) else _source(video)
        if reply is not None and reply.error is not None:
            reply = None  # the video may be readable now
        if reply is not None and reply.source != source:
            raise ValueError(f"{out}: contains a reply about {video}, which has changed since; use another --out")
        if reply is None:
            try:
                answer = session.ask(video() if callable(video) else video, prompt, max_new_tokens)
                reply = Reply(id, answer.text.strip(), answer.tokens, source=source)
            except (ValueError, OSError) as error:
                reply = Reply(id, "", 0, " ".join(str(error).split()), source)
            if out is not None:
                with out.open("a", encoding="utf-8") as file:
                    file.write(json.dumps(vars(reply)) + "\n")
        replies.append(reply)
        if progress is not None:
            progress(index + 1, len(questions))
    return replies


def _read(out: Path | None, request: dict[str, Any]) -> dict[str, Reply]:
    """Reads the replies in an existing file, or writes a new file."""
    if out is None:
        return {}
    if not out.exists() or not out.stat().st_size:
        files.write_text(out, json.dumps({"request": request}) + "\n")
        return {}
    # A truncated file may end inside a character.
    lines = out.read_bytes().decode("utf-8", errors="replace").split("\n")
    try:
        stored = conform(files.parse_json(lines[0], str(out)), dict[str, dict[str, Any]], str(out))["request"]
    except (ValueError, KeyError):
        raise ValueError(f"{out}: not a file of replies; use another --out") from None
    stored = current_keys(stored)
    if stored != json.loads(json.dumps(request)):
        names = ", ".join(sorted(key for key in stored.keys() | request.keys() if stored.get(key) != request.get(key)))
        raise ValueError(f"{out}: contains replies of a run with other settings ({names}); use another --out")
    replies, complete = {}, [lines[0]]
    for line in filter(None, lines[1:]):
        try:
            reply = Reply(**conform(files.parse_json(line, str(out)), Reply, str(out)))
        except ValueError:
            continue  # the truncated last line of a killed run
        replies[reply.id] = reply
        complete.append(line)
    if len(complete) < len(lines) - 1 or lines[-1]:
        files.write_text(out, "".join(line + "\n" for line in complete))
    return replies


def _source(video: Any) -> str | None:
    video = video.path if isinstance(video, VideoPart) else video
    return identity([video]) if isinstance(video, str | Path) else None
