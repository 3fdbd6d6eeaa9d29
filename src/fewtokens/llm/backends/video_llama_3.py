"""VideoLLaMA 3: images of any size, patches merged as the prompt specifies, positions of one axis. arXiv 2501.13106.

Its processor drops cells whose pixels do not change from frame to frame (`use_token_compression`). That is never done
here, whatever a folder specifies: methods take full grids, and `rlt` and others do the same.
"""

from __future__ import annotations

from typing import Any

import torch

from fewtokens.llm.backends.base import HALF
from fewtokens.llm.backends.qwen2_vl import Qwen2VL
from fewtokens.llm.pixels import pixel_limits, whole_patches
from fewtokens.video import Video


class VideoLlama3(Qwen2VL):
    """Rows of a video: T runs of H/28 x W/28, with text between them."""

    name = "video_llama_3"
    mean, std = HALF, HALF

    def tubelet(self, model: Any) -> int:
        return 1

    def merge(self, model: Any, config: dict[str, Any]) -> int:
        # The model takes it with each video; its config specifies the value for images.
        return config.get("merge_size", 2)

    def target(self, config: dict[str, Any], video: Video, factor: int, tubelet: int) -> tuple[int, int]:
        min_pixels, max_pixels = pixel_limits(config)
        return whole_patches(*video.size, factor, min_pixels, max_pixels // len(video))

    def between_runs(self, processor: Any) -> str:
        return ","

    def placeholder_text(self, processor: Any, video: Video, steps: int, cells: int, tubelet: int) -> str:
        return ",".join(f"Time {time:.1f}s:{processor.placeholder * cells}" for time in video.times.tolist())

    def extra_inputs(self, inputs: dict[str, Any], video: Video, tubelet: int, merge: int) -> None:
        inputs["video_merge_sizes"] = torch.tensor([merge])
