"""VideoLLaMA 3: pictures of any size, patches merged as the prompt says, plain positions. arXiv 2501.13106."""

from __future__ import annotations

from typing import Any

from fewtokens.llm.families.qwen2_vl import Qwen2VL
from fewtokens.llm.family import HALF


class VideoLlama3(Qwen2VL):
    """Rows of a video: T runs of H/28 x W/28, with words between them."""

    name = "video_llama_3"
    mrope = False
    mean, std = HALF, HALF

    def merges(self, model: Any, modality: str, inputs: dict[str, Any]) -> list[int]:
        return inputs[f"{modality}_merge_sizes"].tolist()
