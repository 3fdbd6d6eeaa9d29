"""Questions and answers as token ids: a marker at the position of the video, labels only on the answers."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

# The id at the position of a video; not an id of any tokenizer.
VIDEO_MARKER = -200
# The label of ids that are excluded from the loss.
IGNORE_INDEX = -100

Turns = Sequence[tuple[str, str | None]]


def encode_turns(tokenizer: Any, turns: Turns, cells: int = 1) -> tuple[Tensor, Tensor]:
    """Returns the ids of a conversation about one video, int64 [L], and its labels [L].

    Uses the tokenizer's chat template if it has one, otherwise "USER: ... ASSISTANT: ...". The video comes before the
    first question.

    Args:
        tokenizer: a tokenizer of transformers.
        turns: (question, answer); the last answer may be None, for the model to generate.
        cells: the number of markers that stand for the video.

    Raises:
        ValueError: a question contains a special token, or the template rewrites earlier turns.
    """
    ids: list[int] = []
    labels: list[int] = []

    def add(text: str, learn: bool) -> None:
        new_ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        ids.extend(new_ids)
        labels.extend(new_ids if learn else [IGNORE_INDEX] * len(new_ids))

    marker = "<<the video>>"
    messages: list[dict[str, str]] = []
    history = ""
    for turn, (question, answer) in enumerate(turns):
        check_question(tokenizer, question)
        messages.append({"role": "user", "content": question if turn else f"{marker}\n{question}"})
        prompt = _render(tokenizer, messages, add_generation_prompt=True)
        new = _suffix(prompt, history)
        head, separator, tail = (new, "", "") if turn else new.partition(marker)
        add(head, False)
        if separator:
            ids.extend([VIDEO_MARKER] * cells)
            labels.extend([IGNORE_INDEX] * cells)
            add(tail, False)
        if answer is not None:
            messages.append({"role": "assistant", "content": answer})
            history = _render(tokenizer, messages, add_generation_prompt=False)
            add(_suffix(history, prompt), True)
    return torch.tensor(ids), torch.tensor(labels)


def check_question(tokenizer: Any, question: str, extra: Iterable[str] = ()) -> None:
    """Raises a ValueError if a question contains a special token of the tokenizer, or one of `extra`.

    Such a token would stand for an image, end the turn or begin another one.
    """
    added = {id: token for id, token in tokenizer.added_tokens_decoder.items() if token.special}
    names = {*map(str, tokenizer.all_special_tokens), *map(str, added.values()), *extra} - {""}
    special = next((name for name in sorted(names, key=len, reverse=True) if name in question), None)
    if special is None:
        # The tokenizer may map another spelling to a special token. Unknown words are not special.
        special_ids = {*tokenizer.all_special_ids, *added} - {tokenizer.unk_token_id}
        ids = tokenizer(question, add_special_tokens=False)["input_ids"]
        special = next((tokenizer.convert_ids_to_tokens(id) for id in ids if id in special_ids), None)
    if special is not None:
        raise ValueError(f"the question contains {special}, which is a special token of this model; remove it")


def _render(tokenizer: Any, messages: list[dict[str, str]], *, add_generation_prompt: bool) -> str:
    """A conversation as text, with the beginning of an answer if `add_generation_prompt`."""
    if getattr(tokenizer, "chat_template", None):
        return tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=add_generation_prompt)
    text = tokenizer.bos_token or ""
    for message in messages:
        if message["role"] == "user":
            text += f"USER: {message['content']} ASSISTANT:"
        else:
            text += f" {message['content']}{tokenizer.eos_token or ''}"
    return text


def _suffix(text: str, prefix: str) -> str:
    if not text.startswith(prefix):
        raise ValueError(
            "the chat template of this tokenizer rewrites earlier turns when later ones follow, so answers cannot be "
            "separated from questions; use conversations of one turn, or another template"
        )
    return text[len(prefix) :]


def collate_turns(samples: Sequence[tuple[Tensor, Tensor]], pad: int, *, left: bool = False) -> dict[str, Tensor]:
    """Pads conversations to one length: ids, mask and labels [B,L]."""
    length = max(len(ids) for ids, _ in samples)

    def row(values: Tensor, fill: int) -> Tensor:
        padding = length - len(values)
        return torch.nn.functional.pad(values, (padding, 0) if left else (0, padding), value=fill)

    return {
        "input_ids": torch.stack([row(ids, pad) for ids, _ in samples]),
        "attention_mask": torch.stack([row(torch.ones_like(ids), 0) for ids, _ in samples]),
        "labels": torch.stack([row(labels, IGNORE_INDEX) for _, labels in samples]),
    }
