"""Qwen2.5-VL: as Qwen2-VL, with windows in the encoder and positions in absolute time. arXiv 2502.13923."""

from __future__ import annotations

from typing import Any

import torch

from fewtokens.llm.families.qwen2_vl import Qwen2VL
from fewtokens.video import Video


class Qwen25VL(Qwen2VL):
    """Rows of a video: T/2 x H/28 x W/28, in raster order."""

    name = "qwen2_5_vl"

    def more(self, inputs: dict[str, Any], video: Video, tubelet: int, merge: int) -> None:
        inputs["second_per_grid_ts"] = torch.tensor([tubelet / frames_a_second(video)])


def frames_a_second(video: Video) -> float:
    """How many of the frames at hand there are in a second."""
    seconds = video.duration
    if not seconds:
        # Where the file does not say its length: the last frame is shown as long as the others.
        span = float(video.times[-1] - video.times[0])
        seconds = span * len(video) / max(1, len(video) - 1)
    return len(video) / seconds if seconds > 0 else video.fps or 24.0
