"""Gemma 4 without a vision tower: each patch is a row."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fewtokens.llm.backends.gemma4 import Gemma4


class Gemma4Unified(Gemma4):
    """Rows of a video: T runs of cells, after the time of each frame."""

    name = "gemma4_unified"

    def merges(self, model: Any, modality: str, inputs: dict[str, Any], count: int) -> Sequence[int | None]:
        return [1] * count
