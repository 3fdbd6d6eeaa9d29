"""VideoLLaMA 3: pictures of any size, patches merged as the prompt says, plain positions. arXiv 2501.13106.

Its processor drops cells that stay the same from frame to frame (`use_token_compression`), on pixels. That is left out
here, whatever a folder says: methods take whole grids, and `rlt` and others do the same.
"""

from __future__ import annotations

from typing import Any

import torch

from fewtokens.llm.backends.base import HALF
from fewtokens.llm.backends.qwen2_vl import Qwen2VL
from fewtokens.llm.pixels import budget, whole_patches
from fewtokens.video import Video


class VideoLlama3(Qwen2VL):
    """Rows of a video: T runs of H/28 x W/28, with words between them."""

    name = "video_llama_3"
    mrope = False
    mean, std = HALF, HALF

    def merges(self, model: Any, modality: str, inputs: dict[str, Any]) -> list[int]:
        return inputs[f"{modality}_merge_sizes"].tolist()

    def tubelet(self, model: Any) -> int:
        return 1

    def merge(self, model: Any, config: dict[str, Any]) -> int:
        # The model takes it with each video; its config speaks of pictures.
        return config.get("merge_size", 2)

    def target(self, config: dict[str, Any], video: Video, factor: int, tubelet: int) -> tuple[int, int]:
        least, most = budget(config)
        return whole_patches(*video.size, factor, least, most // len(video))

    def placeholder_text(self, processor: Any, video: Video, steps: int, cells: int, tubelet: int) -> str:
        return ",".join(f"Time {time:.1f}s:{processor.placeholder * cells}" for time in video.times.tolist())

    def extra_inputs(self, inputs: dict[str, Any], video: Video, tubelet: int, merge: int) -> None:
        inputs["video_merge_sizes"] = torch.tensor([merge])
