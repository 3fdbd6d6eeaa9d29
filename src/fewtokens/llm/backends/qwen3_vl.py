"""Qwen3-VL and later models with its processor: timestamps as text between the frames, DeepStack features.

arXiv 2511.21631.
"""

from __future__ import annotations

from typing import Any, ClassVar

from fewtokens.llm.backends.base import HALF
from fewtokens.llm.backends.qwen2_vl import Qwen2VL
from fewtokens.llm.pixels import pair_times, pixel_limits, whole_patches
from fewtokens.video import Video


class Qwen3VL(Qwen2VL):
    """Rows of a video: T/2 runs of H/32 x W/32, with timestamps between them. The plan also merges DeepStack rows."""

    name = "qwen3_vl"
    mean, std = HALF, HALF
    preprocess_config: ClassVar = {"size": {"shortest_edge": 128 * 32 * 32, "longest_edge": 768 * 32 * 32}}

    def target(self, config: dict[str, Any], video: Video, factor: int, tubelet: int) -> tuple[int, int]:
        # Here the pixel limits are those of all frames together.
        min_pixels, max_pixels = pixel_limits(config)
        T, (height, width) = len(video), video.size
        if config.get("cap_pixels_per_frame"):
            frame = min(config.get("max_video_tokens", 768) * factor * factor, max_pixels // T)
            max_pixels = max(frame, int(min_pixels * 1.05)) * T
        if min(height, width) < factor:
            grow = max(factor / height, factor / width)
            height, width = int(height * grow), int(width * grow)
        return whole_patches(height, width, factor, min_pixels, max_pixels, T, round(T / tubelet) * tubelet)

    def between_runs(self, processor: Any) -> str:
        return ""  # each step has its own start and end

    def placeholder_text(self, processor: Any, video: Video, steps: int, cells: int, tubelet: int) -> str:
        start = processor.token("vision_start_token", "<|vision_start|>")
        run = start + processor.placeholder * cells + processor.token("vision_end_token", "<|vision_end|>")
        return "".join(f"<{time:.1f} seconds>{run}" for time in pair_times(video.times.tolist(), tubelet))
