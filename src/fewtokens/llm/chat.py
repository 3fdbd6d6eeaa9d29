"""Questions and answers as token ids: one mark where the video stands, labels on the answers alone."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

# Stands in the ids where the tokens of a video go; no id of a tokenizer.
VIDEO_MARK = -200
# What is not learned from.
IGNORED = -100

Turns = Sequence[tuple[str, str | None]]


def encode_turns(tokenizer: Any, turns: Turns, cells: int = 1) -> tuple[Tensor, Tensor]:
    """The ids of a conversation about one video, int64 [L], and its labels [L].

    With the tokenizer's chat template where it has one, otherwise as "USER: ... ASSISTANT: ...". The video comes before
    the first question.

    Args:
        tokenizer: of transformers.
        turns: (question, answer); the last answer may be None: it is what the model is asked for.
        cells: how many marks stand for the video.

    Raises:
        ValueError: a question with a special token in it, or a template that rewrites earlier turns.
    """
    ids: list[int] = []
    labels: list[int] = []

    def say(text: str, learned: bool) -> None:
        made = tokenizer(text, add_special_tokens=False)["input_ids"]
        ids.extend(made)
        labels.extend(made if learned else [IGNORED] * len(made))

    mark = "<<the video>>"
    messages: list[dict[str, str]] = []
    done = ""
    for number, (question, answer) in enumerate(turns):
        check_question(tokenizer, question)
        messages.append({"role": "user", "content": question if number else f"{mark}\n{question}"})
        asked = _rendered(tokenizer, messages, asking=True)
        new = _after(asked, done)
        head, found, tail = (new, "", "") if number else new.partition(mark)
        say(head, False)
        if found:
            ids.extend([VIDEO_MARK] * cells)
            labels.extend([IGNORED] * cells)
            say(tail, False)
        if answer is not None:
            messages.append({"role": "assistant", "content": answer})
            done = _rendered(tokenizer, messages, asking=False)
            say(_after(done, asked), True)
    return torch.tensor(ids), torch.tensor(labels)


def check_question(tokenizer: Any, question: str, also: Iterable[str] = ()) -> None:
    """Raises a ValueError where a question has a special token of the tokenizer, or one of `also`, in it.

    Such a token would stand for a picture, end the turn or begin another one.
    """
    added = {number: token for number, token in tokenizer.added_tokens_decoder.items() if token.special}
    names = {*map(str, tokenizer.all_special_tokens), *map(str, added.values()), *also} - {""}
    found = next((name for name in sorted(names, key=len, reverse=True) if name in question), None)
    if found is None:
        # Spelled in another way that the tokenizer takes for one. Words that it does not know are none.
        numbers = {*tokenizer.all_special_ids, *added} - {tokenizer.unk_token_id}
        ids = tokenizer(question, add_special_tokens=False)["input_ids"]
        found = next((tokenizer.convert_ids_to_tokens(id) for id in ids if id in numbers), None)
    if found is not None:
        raise ValueError(f"the question has {found} in it, which is a special token of this model; leave it out")


def _rendered(tokenizer: Any, messages: list[dict[str, str]], *, asking: bool) -> str:
    """A conversation as text; `asking` adds what stands before an answer."""
    if getattr(tokenizer, "chat_template", None):
        return tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=asking)
    text = tokenizer.bos_token or ""
    for message in messages:
        if message["role"] == "user":
            text += f"USER: {message['content']} ASSISTANT:"
        else:
            text += f" {message['content']}{tokenizer.eos_token or ''}"
    return text


def _after(text: str, begin: str) -> str:
    if not text.startswith(begin):
        raise ValueError(
            "the chat template of this tokenizer writes earlier turns otherwise once there are later ones, so answers "
            "cannot be separated from questions; give conversations of one turn, or another template"
        )
    return text[len(begin) :]


def collate_turns(samples: Sequence[tuple[Tensor, Tensor]], pad: int, *, left: bool = False) -> dict[str, Tensor]:
    """Ids, mask and labels [B,L] of conversations side by side."""
    width = max(len(ids) for ids, _ in samples)

    def line(values: Tensor, fill: int) -> Tensor:
        free = width - len(values)
        return torch.nn.functional.pad(values, (free, 0) if left else (0, free), value=fill)

    return {
        "input_ids": torch.stack([line(ids, pad) for ids, _ in samples]),
        "attention_mask": torch.stack([line(torch.ones_like(ids), 0) for ids, _ in samples]),
        "labels": torch.stack([line(labels, IGNORED) for _, labels in samples]),
    }
