"""A list of questions on videos put to a session, one after the other; what was answered is kept in a file."""

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
from fewtokens.llm.session import Session


@dataclass(frozen=True)
class Reply:
    """A reply, and how many visual tokens it saw; `error` says why a video could not be asked about.

    `source` is the identity of the video's file or folder, if it is one.
    """

    id: str
    text: str
    tokens: int
    error: str | None = None
    source: str | None = None


def ask_all(
    session: Session,
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
        out: a .jsonl that is written to as replies come, and from which an interrupted run resumes.
        request: what the replies depend on, kept in its first line.
        progress: called with (done, in all).

    Raises:
        ValueError: `out` holds replies to another request, or on a video that has changed since; or two questions
            have one id.
    """
    if len({id for id, _, _ in asked}) < len(asked):
        raise ValueError("two questions have the same id")
    known = _read(out, request or {})
    replies = []
    for number, (id, video, prompt) in enumerate(asked):
        reply = known.get(id)
        source = None if callable(video) else _source(video)
        if reply is not None and reply.error is not None:
            reply = None  # it may be readable by now
        if reply is not None and reply.source != source:
            raise ValueError(f"{out}: holds a reply on {video}, which has changed since. Give another --out")
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
            progress(number + 1, len(asked))
    return replies


def _read(out: Path | None, request: dict[str, Any]) -> dict[str, Reply]:
    """The replies in an existing file; writes a new one otherwise."""
    if out is None:
        return {}
    if not out.exists() or not out.stat().st_size:
        files.write_text(out, json.dumps({"request": request}) + "\n")
        return {}
    # A cut may lie inside of a letter.
    lines = out.read_bytes().decode("utf-8", errors="replace").split("\n")
    try:
        earlier = conform(files.parse_json(lines[0], str(out)), dict[str, dict[str, Any]], str(out))["request"]
    except (ValueError, KeyError):
        raise ValueError(f"{out}: holds no replies of an earlier run; give another --out") from None
    earlier = current_keys(earlier)
    if earlier != json.loads(json.dumps(request)):
        names = ", ".join(
            sorted(key for key in earlier.keys() | request.keys() if earlier.get(key) != request.get(key))
        )
        raise ValueError(f"{out}: holds replies of a run with other settings ({names}); give another --out")
    replies, whole = {}, [lines[0]]
    for line in filter(None, lines[1:]):
        try:
            reply = Reply(**conform(files.parse_json(line, str(out)), Reply, str(out)))
        except ValueError:
            continue  # the last line of a run that was killed
        replies[reply.id] = reply
        whole.append(line)
    if len(whole) < len(lines) - 1 or lines[-1]:
        files.write_text(out, "".join(line + "\n" for line in whole))
    return replies


def _source(video: Any) -> str | None:
    return identity([video]) if isinstance(video, str | Path) else None
