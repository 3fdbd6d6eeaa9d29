"""Where the time of an answer goes: stages one after the other without gaps, and the moments of the words."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

# Stages before the first token, in order.
STAGES = ("decode", "encode", "reduce", "prefill")


class Clock:
    """Seconds of each stage; what lies between two laps belongs to one of them, so that they add up to the whole.

    Args:
        device: whose work is waited for, so that a lap ends when the work is done.

    Attributes:
        seconds: by stage.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.seconds = dict.fromkeys(STAGES, 0.0)
        self.begun = self.last = time.perf_counter()

    def lap(self, stage: str) -> None:
        """Counts what was done since the last lap as this stage's."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        self.lap_at(stage, time.perf_counter())

    def lap_at(self, stage: str, moment: float) -> None:
        """The same up to a moment that was noted."""
        self.seconds[stage] += moment - self.last
        self.last = moment


def stream_text(tokenizer: Any, on_text: Callable[[str], None] | None) -> Any:
    """A streamer of transformers that keeps the pieces, and the moments at which the first and the last token came.

    `generate` puts in the prompt first, which is skipped, and after a prompt of embeddings an empty tensor.
    """
    from transformers import TextStreamer

    class Stream(TextStreamer):
        def __init__(self) -> None:
            super().__init__(tokenizer, skip_prompt=False, skip_special_tokens=True)
            self.pieces: list[str] = []
            self.first = self.last = 0.0
            self.tokens = 0
            self.skip = True

        def put(self, value: Tensor) -> None:
            if self.skip or not value.numel():
                self.skip = False
                return
            self.last = time.perf_counter()
            self.first = self.first or self.last
            self.tokens += value.numel()
            super().put(value)

        def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
            text = text if self.pieces else text.lstrip()
            if not text:
                return
            self.pieces.append(text)
            if on_text is not None:
                on_text(text)

    return Stream()
