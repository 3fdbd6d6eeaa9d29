"""Measures the time of an answer by stage, and the times of its first and last token."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

# Stages before the first token, in order.
STAGES = ("decode", "encode", "reduce", "prefill")


class Clock:
    """Measures seconds per stage. The time between two laps counts toward one stage, so the stages add up to the total.

    Args:
        device: the device to synchronize, so that a lap ends when its work is done.

    Attributes:
        seconds: seconds by stage.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.seconds = dict.fromkeys(STAGES, 0.0)
        self.start = self.last = time.perf_counter()

    def lap(self, stage: str) -> None:
        """Counts the time since the last lap toward a stage."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        self.lap_at(stage, time.perf_counter())

    def lap_at(self, stage: str, timestamp: float) -> None:
        """Counts the time from the last lap to a recorded timestamp toward a stage."""
        self.seconds[stage] += timestamp - self.last
        self.last = timestamp


def stream_text(tokenizer: Any, on_text: Callable[[str], None] | None) -> Any:
    """Returns a streamer of transformers that collects the text, and the times of the first and the last token.

    `generate` first puts the prompt, which is skipped, and after a prompt of embeddings also an empty tensor.
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
