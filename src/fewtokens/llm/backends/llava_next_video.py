"""LLaVA-NeXT-Video: frames of 24 x 24 patches pooled to 12 x 12."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn

from fewtokens.core.grid import Grid
from fewtokens.llm.backends.base import (
    CLIP_MEAN,
    CLIP_STD,
    Backend,
    VisualFeatures,
    cell_pixels,
    square_side,
    to_unit_pixels,
)
from fewtokens.llm.pixels import PreparedVideo, fit, normalize
from fewtokens.video import Video


class LlavaNextVideo(Backend):
    """Rows of a video: T x 12 x 12."""

    name = "llava_next_video"
    mean, std = CLIP_MEAN, CLIP_STD

    def defaults(self, config: Any) -> dict[str, Any]:
        side = config.vision_config.image_size
        crop = {"do_center_crop": True, "crop_size": {"height": side, "width": side}}
        return super().defaults(config) | {"size": {"shortest_edge": side}} | crop

    def prepare(self, model: Any, processor: Any, video: Video) -> PreparedVideo:
        frames = normalize(fit(video.frames, processor.preprocess_config), processor.preprocess_config)
        patch = model.config.vision_config.patch_size
        patches = (frames.shape[2] // patch) * (frames.shape[3] // patch)
        return PreparedVideo(
            {"pixel_values_videos": frames[None]}, processor.placeholder * (patches // 4 * len(frames))
        )

    def visuals(
        self, model: nn.Module, modality: str, outputs: Any, inputs: dict[str, Any], items: Sequence[Any], pixels: bool
    ) -> list[VisualFeatures]:
        if modality == "image":
            return [VisualFeatures("image", rows) for rows in outputs.pooler_output]
        frames = inputs["pixel_values_videos"]
        T = frames.shape[1]
        # Before transformers 5.20 a video's rows come frame by frame.
        videos = [rows.flatten(0, -2) for rows in outputs.pooler_output]
        side = square_side(len(videos[0]) // T, self.name)
        grid = Grid(T, side, side)
        return [
            VisualFeatures(
                "video",
                rows,
                grid,
                pixels=cell_pixels(to_unit_pixels(frames[index], self.mean, self.std), grid) if pixels else None,
            )
            for index, rows in enumerate(videos)
        ]
