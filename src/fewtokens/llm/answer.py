"""Generates the answer to a shortened prompt, and measures it; for `Session` and `StreamSession`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch

from fewtokens.llm.attach import check_free
from fewtokens.llm.backends.base import Backend
from fewtokens.llm.clock import Clock, stream_text
from fewtokens.llm.prompt_editor import Compressed
from fewtokens.llm.prompts import Processor


@dataclass
class Answer:
    """An answer and its cost.

    Attributes:
        text: the answer.
        tokens: the number of visual tokens that the language model read, without rows that are not cells (a newline).
            Methods inside the language model drop more of them, see `layer_tokens`.
        cells: the number of visual tokens before reduction.
        prompt_tokens: the number of all tokens in the prompt.
        new_tokens: the number of tokens in the answer.
        seconds: the time to first token (TTFT) by stage: "decode" (reading and resizing), "encode", "reduce" (with
            building the prompt) and "prefill"; 0 for stages whose result an earlier question left in memory.
        generation_seconds: seconds from the first token to the last one.
        speed: tokens per second after the first; None if there is only one.
        memory: peak bytes beyond weights and features while answering; None on a CPU, unless `ask(memory=True)`
            measures the prefill by running it a second time.
        layer_tokens: the number of visual tokens in each layer during the prefill, if methods act inside the language
            model; otherwise empty. `dycoke_cache` reduces caches only after the prefill.
        sizes: (steps, rows, columns) in cells of each run of frames of equal size, if a selector chose several sizes;
            otherwise empty. A step is one frame, or two in a family with tubelets.
    """

    text: str
    tokens: int
    cells: int
    prompt_tokens: int
    new_tokens: int
    seconds: dict[str, float] = field(default_factory=dict)
    generation_seconds: float = 0.0
    speed: float | None = None
    memory: int | None = None
    layer_tokens: list[int] = field(default_factory=list)
    sizes: list[tuple[int, int, int]] = field(default_factory=list)

    @property
    def first_token(self) -> float:
        """The time to first token (TTFT) in seconds."""
        return sum(self.seconds.values())


def check_question(model: Any, question: str, max_new_tokens: int) -> None:
    """Raises ValueError for an invalid argument, or if methods are already attached to the model."""
    if not isinstance(question, str):
        raise ValueError(f"question must be one string, got {type(question).__name__}; call ask once per question")
    if max_new_tokens < 1:
        raise ValueError(f"max_new_tokens must be at least 1, got {max_new_tokens}")
    check_free(model)


def last_position(inputs: dict[str, Any]) -> int:
    """The number of columns of a prompt, or 1 more than its largest position if that is larger."""
    length, positions = inputs["input_ids"].shape[1], inputs.get("position_ids")
    return length if positions is None else max(length, int(positions.max()) + 1)


def check_length(backend: Backend, model: Any, inputs: dict[str, Any], max_new_tokens: int, *remedies: str) -> None:
    """Raises ValueError if prompt and answer are longer than the context.

    Args:
        remedies: what shortens the prompt, for the message.
    """
    limit = backend.context_length(model)
    length, end = inputs["input_ids"].shape[1], last_position(inputs)
    if limit is None or end + max_new_tokens <= limit:
        return
    size, options = f"has {length} tokens", list(remedies)
    if end > length:
        size, options = f"reaches position {end}", [*options, "positions='renumber'"]
    remedy = options[0] if len(options) == 1 else " or ".join([", ".join(options[:-1]), options[-1]])
    raise ValueError(
        f"the prompt {size} and the answer may have {max_new_tokens}, but the context of this model is {limit}; "
        f"use {remedy}"
    )


def generate(
    model: Any,
    processor: Processor,
    short: Compressed,
    max_new_tokens: int,
    on_text: Callable[[str], None] | None,
    clock: Clock,
) -> Answer:
    """Generates the answer to a shortened prompt by greedy decoding.

    Args:
        on_text: called with each piece of the answer.
        clock: counts the time to the first token toward "prefill".
    """
    device, inputs = model.device, dict(short.inputs)
    length = inputs["input_ids"].shape[1]
    cuda = device.type == "cuda"
    before = 0
    if cuda:
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
    stream = stream_text(processor.tokenizer, on_text)
    out = model.generate(
        **inputs,
        max_new_tokens=max_new_tokens,
        do_sample=False,
        num_beams=1,
        # Unset what a checkpoint's generation_config may specify for sampling.
        temperature=None,
        top_p=None,
        top_k=None,
        streamer=stream,
    )
    new = out.shape[1] - length
    clock.lap_at("prefill", stream.first)
    generation_seconds = stream.last - stream.first
    return Answer(
        text="".join(stream.pieces),
        tokens=sum(int(tokens.count.sum()) for tokens in short.tokens),
        cells=sum(tokens.grid.cells for tokens in short.tokens),
        prompt_tokens=length,
        new_tokens=new,
        seconds=clock.seconds,
        generation_seconds=generation_seconds,
        speed=(new - 1) / generation_seconds if generation_seconds > 0 else None,
        memory=torch.cuda.max_memory_allocated(device) - before if cuda else None,
    )
