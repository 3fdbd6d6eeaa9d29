"""LLaVA-OneVision: 27 x 27 patches of a frame pooled to 14 x 14, one newline after each video. arXiv 2408.03326."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, ClassVar

from fewtokens.core.grid import Grid
from fewtokens.llm.backends.base import Backend
from fewtokens.llm.pixels import PreparedVideo, fit, normalize
from fewtokens.video import Video


class LlavaOnevision(Backend):
    """Rows of a video: T x 14 x 14, then the newline, which is not a cell and is always kept."""

    name = "llava_onevision"
    cues: ClassVar = ("text", "frame_global", "pixels")

    def defaults(self, config: Any) -> dict[str, Any]:
        side = config.vision_config.image_size
        return super().defaults(config) | {"size": {"height": side, "width": side}}

    def prepare(self, model: Any, processor: Any, video: Video) -> PreparedVideo:
        frames = normalize(fit(video.frames, processor.preprocess_config), processor.preprocess_config)
        side = self.side(model)
        prepared = self.describe(model, processor, video, Grid(len(frames), side, side))
        prepared.inputs["pixel_values_videos"] = frames[None]
        return prepared

    def describe(self, model: Any, processor: Any, video: Video, grid: Grid) -> PreparedVideo:
        return PreparedVideo(text=processor.placeholder * (grid.cells + 1))

    def prepare_images(self, model: Any, processor: Any, images: Sequence[Video]) -> list[PreparedVideo]:
        return self.prepare_tiled_images(model, processor, images, nested=True)

    def side(self, model: Any) -> int:
        """The number of cells along a side of a frame."""
        vision = model.config.vision_config
        return math.ceil(vision.image_size // vision.patch_size / 2)
