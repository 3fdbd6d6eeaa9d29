"""Nemotron-H Omni: two frames are one step, with text between steps; videos have the placeholder of images."""

from __future__ import annotations

from typing import ClassVar

from fewtokens.llm.backends.base import Backend


class NemotronHOmni(Backend):
    """Rows of a video: T/2 runs of cells. Before transformers 5.24 the encoder returns each step separately."""

    name = "nemotron_h_omni"
    video_parts = True
    listed: ClassVar = ("video",)
