"""MiniCPM-V 4.6 and 4.7, MiniCPM-OCR: images and frames are cut into slices, each a run of placeholders."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fewtokens.llm.backends.base import Backend
from fewtokens.llm.backends.rows import Shape


class MiniCPMV46(Backend):
    """Rows of a video: a run of cells for each slice of each frame; slices of equal size are taken for frames."""

    name = "minicpmv4_6"
    video_parts = True

    def shapes(self, model: Any, modality: str, inputs: dict[str, Any], count: int) -> Sequence[Shape] | None:
        sizes = inputs["target_sizes_videos" if modality == "video" else "target_sizes"]
        return [(1, height, width) for height, width in sizes.repeat(count // len(sizes), 1).tolist()]

    def merges(self, model: Any, modality: str, inputs: dict[str, Any], count: int) -> Sequence[int | None]:
        mode = inputs.get("downsample_mode") or model.config.downsample_mode
        return [2 if mode == "4x" else 4] * count
