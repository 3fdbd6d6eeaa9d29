"""Kimi K2.5: chunks of frames, whose rows are averages over the frames of a chunk, each after its time."""

from __future__ import annotations

from fewtokens.llm.backends.base import Backend


class KimiK25(Backend):
    """Rows of a video: a run of cells for each chunk. Transformers 5.23 fails for chunks of several frames."""

    name = "kimi_k25"
    raster = True
    video_parts = True
