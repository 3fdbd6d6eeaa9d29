"""MiniMax M3 VL: long videos are encoded in chunks; each frame has its own run of placeholders after its time."""

from __future__ import annotations

from fewtokens.llm.backends.base import Backend


class MiniMaxM3(Backend):
    """Rows of a video: T/2 runs of cells, of one or several chunks."""

    name = "minimax_m3_vl"
    video_parts = True
