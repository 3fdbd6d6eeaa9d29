"""Chat messages in the format of transformers: text, images and videos, each by its role in the conversation.

[{"role": "user", "content": [{"type": "video", "path": "clip.mp4"}, {"type": "text", "text": "What happens?"}]}]
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fewtokens.video import Video, read

Message = dict[str, Any]
_ROLES = ("system", "user", "assistant")
_FORMAT = (
    "a message is {'role': 'user', 'content': [{'type': 'video', 'path': 'clip.mp4'}, {'type': 'text', 'text': '...'}]}"
)


def question_messages(question: str, kind: str = "video", value: Any = None) -> list[Message]:
    """Returns a conversation of one question about an image or a video."""
    return [{"role": "user", "content": [{"type": kind, kind: value}, {"type": "text", "text": question}]}]


def conversations(messages: Any) -> list[list[Message]]:
    """Returns a conversation, or those of a batch, as a list, with the content of each message as a list of parts.

    Raises:
        ValueError: another format, a role other than system, user and assistant, or a part other than text, image and
            video.
    """
    if not isinstance(messages, list | tuple) or not messages:
        raise ValueError(f"messages must be a list of messages, got {type(messages).__name__}; {_FORMAT}")
    batch = messages if all(isinstance(each, list | tuple) for each in messages) else [messages]
    if not all(batch):
        raise ValueError(f"a conversation of the batch has no messages; {_FORMAT}")
    return [[_message(message) for message in conversation] for conversation in batch]


def _message(message: Any) -> Message:
    if not isinstance(message, dict) or not {"role", "content"} <= set(message):
        raise ValueError(f"not a message: {type(message).__name__}; {_FORMAT}")
    role, content = message["role"], message["content"]
    if role not in _ROLES:
        raise ValueError(f"the role of a message must be one of {', '.join(_ROLES)}, got {role!r}")
    parts = [{"type": "text", "text": content}] if isinstance(content, str) else content
    if not isinstance(parts, list | tuple):
        raise ValueError(f"the content of a message must be a string or a list of parts, got {type(content).__name__}")
    return {"role": role, "content": [_part(part) for part in parts]}


def _part(part: Any) -> dict[str, Any]:
    """A part as {"type": "text", "text": ...} or {"type": kind, kind: value}."""
    kind = part.get("type") if isinstance(part, dict) else None
    if kind == "text":
        if not isinstance(part.get("text"), str):
            raise ValueError(f"a part of type 'text' must have a string 'text'; {_FORMAT}")
        return {"type": "text", "text": part["text"]}
    if kind not in ("image", "video"):
        raise ValueError(f"a part of a message must have the type text, image or video, got {kind!r}; {_FORMAT}")
    value = next((part[name] for name in (kind, "path", "url") if part.get(name) is not None), None)
    if value is None:
        raise ValueError(f"a part of type {kind!r} has neither {kind!r} nor 'path'; {_FORMAT}")
    if isinstance(value, str) and value.startswith(("http://", "https://")):
        raise ValueError(f"{value}: addresses are not read; download the {kind} and pass its path")
    return {"type": kind, kind: value}


def texts(conversation: Sequence[Message]) -> list[str]:
    """The texts of a conversation, in order."""
    return [part["text"] for message in conversation for part in message["content"] if part["type"] == "text"]


def visuals(conversation: Sequence[Message], kind: str) -> list[Any]:
    """The images or videos of a conversation, in order."""
    return [part[kind] for message in conversation for part in message["content"] if part["type"] == kind]


def flatten(conversation: Sequence[Message], markers: dict[str, str]) -> list[dict[str, str]]:
    """Returns a conversation whose contents are strings, in which a marker stands for each image and video.

    Args:
        markers: the marker of each kind.
    """

    def text(part: dict[str, Any]) -> str:
        return part["text"] if part["type"] == "text" else markers[part["type"]] + "\n"

    return [{"role": each["role"], "content": "".join(map(text, each["content"]))} for each in conversation]


def as_video(value: Any, frames: int | None, size: int | None) -> Video:
    """Reads a video: a path, an array or a tensor of frames, a list of images, or a `Video`, which is returned as is.

    Args:
        frames, size: see `fewtokens.read`; for paths only.

    Raises:
        ValueError: it cannot be read.
    """
    if isinstance(value, Video):
        return value
    if isinstance(value, str | os.PathLike):
        return read(Path(value), frames=frames, size=size)
    return read(np.stack([_pixels(frame) for frame in value]) if isinstance(value, list | tuple) else _pixels(value))


def as_image(value: Any) -> Video:
    """Reads an image: a path, an array or a tensor, an image of Pillow, or a `Video` of one frame.

    Raises:
        ValueError: it cannot be read, or there are several.
    """
    image = as_video(value, None, None)
    if len(image) != 1:
        raise ValueError(f"{image.name} has {len(image)} images; pass each as a separate image, or all as a video")
    return image


def _pixels(value: Any) -> Any:
    """The pixels of an image of Pillow as an array; another value is returned as is."""
    convert: Callable[[str], Any] | None = getattr(value, "convert", None)
    return value if convert is None else np.array(convert("RGB"))
