"""Qwen2.5-VL: Qwen2-VL with window attention in the encoder and positions in absolute time. arXiv 2502.13923."""

from __future__ import annotations

from typing import Any

import torch

from fewtokens.llm.backends.qwen2_vl import Qwen2VL
from fewtokens.video import Video

# The interval of frames without timestamps, as in transformers.
_DEFAULT_SECONDS = 1 / 24


class Qwen25VL(Qwen2VL):
    """Rows of a video: T/2 x H/28 x W/28, in raster order."""

    name = "qwen2_5_vl"

    def extra_inputs(self, inputs: dict[str, Any], video: Video, tubelet: int, merge: int) -> None:
        # The interval of these frames, not of their file, of which they may be a part.
        seconds = video.interval or _DEFAULT_SECONDS
        inputs["second_per_grid_ts"] = torch.tensor([tubelet * seconds])
