"""Video-LLaVA: eight frames, whose class tokens are kept. arXiv 2311.10122."""

from __future__ import annotations

from fewtokens.llm.backends.base import Backend


class VideoLlava(Backend):
    """Rows of a video: T times a class token and 16 x 16 cells."""

    name = "video_llava"
    leading = True
