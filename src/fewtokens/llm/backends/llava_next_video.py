"""LLaVA-NeXT-Video: frames of 24 x 24 patches pooled to 12 x 12."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

from fewtokens.core.grid import Grid
from fewtokens.llm.backends.base import CLIP_MEAN, CLIP_STD, Backend
from fewtokens.llm.pixels import PreparedVideo, fit, normalize
from fewtokens.video import Video


class LlavaNextVideo(Backend):
    """Rows of a video: T x 12 x 12."""

    name = "llava_next_video"
    cues: ClassVar = ("text", "frame_global", "pixels")
    mean, std = CLIP_MEAN, CLIP_STD

    def defaults(self, config: Any) -> dict[str, Any]:
        side = config.vision_config.image_size
        crop = {"do_center_crop": True, "crop_size": {"height": side, "width": side}}
        return super().defaults(config) | {"size": {"shortest_edge": side}} | crop

    def prepare(self, model: Any, processor: Any, video: Video) -> PreparedVideo:
        frames = normalize(fit(video.frames, processor.preprocess_config), processor.preprocess_config)
        patch = model.config.vision_config.patch_size
        cells = (frames.shape[2] // patch) * (frames.shape[3] // patch) // 4
        prepared = self.describe(model, processor, video, Grid(len(frames), 1, cells))
        prepared.inputs["pixel_values_videos"] = frames[None]
        return prepared

    def describe(self, model: Any, processor: Any, video: Video, grid: Grid) -> PreparedVideo:
        return PreparedVideo(text=processor.placeholder * grid.cells)

    def prepare_images(self, model: Any, processor: Any, images: Sequence[Video]) -> list[PreparedVideo]:
        return self.prepare_tiled_images(model, processor, images)
