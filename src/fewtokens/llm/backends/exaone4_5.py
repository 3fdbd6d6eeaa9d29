"""EXAONE 4.5 and HyperCLOVA X Vision 2: Qwen2.5-VL's encoder, and positions that are a count of the columns."""

from __future__ import annotations

from fewtokens.llm.backends.base import Backend


class Exaone45(Backend):
    """Rows of a video: T/2 x H x W."""

    name = "exaone4_5"
    counted = True
