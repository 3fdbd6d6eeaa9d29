"""Qwen2.5-VL: as Qwen2-VL, with windows in the encoder and positions in absolute time. arXiv 2502.13923."""

from __future__ import annotations

from typing import Any

import torch

from fewtokens.llm.backends.qwen2_vl import Qwen2VL
from fewtokens.video import Video

# Between frames that do not say when they are shown, as transformers has it.
_USUAL_SECONDS = 1 / 24


class Qwen25VL(Qwen2VL):
    """Rows of a video: T/2 x H/28 x W/28, in raster order."""

    name = "qwen2_5_vl"

    def extra_inputs(self, inputs: dict[str, Any], video: Video, tubelet: int, merge: int) -> None:
        # Of the frames at hand, which may be a part of their file: its length and rate say nothing of them.
        seconds = video.interval or _USUAL_SECONDS
        inputs["second_per_grid_ts"] = torch.tensor([tubelet * seconds])
