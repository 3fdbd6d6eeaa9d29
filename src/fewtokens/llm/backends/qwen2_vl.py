"""Qwen2-VL: any image size, tubelets of two frames, 2 x 2 patches merged, positions (t, h, w). arXiv 2409.12191."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch

from fewtokens.core.grid import Grid
from fewtokens.llm.backends.base import CLIP_MEAN, CLIP_STD, Backend
from fewtokens.llm.interface import attribute
from fewtokens.llm.pixels import PreparedVideo, normalize, pack, pixel_limits, resize, whole_patches
from fewtokens.video import Video


class Qwen2VL(Backend):
    """Rows of a video: T/2 x H/28 x W/28, in raster order."""

    name = "qwen2_vl"
    any_size = True
    cues: ClassVar = ("text", "frame_global", "pixels")
    mean, std = CLIP_MEAN, CLIP_STD
    preprocess_config: ClassVar = {"size": {"shortest_edge": 128 * 28 * 28, "longest_edge": 768 * 28 * 28}}

    def prepare(self, model: Any, processor: Any, video: Video) -> PreparedVideo:
        return self.prepare_at(model, processor, video, self.frame_size(model, processor, video))

    def frame_size(self, model: Any, processor: Any, video: Video) -> tuple[int, int]:
        return self.target(processor.preprocess_config, video, self.cell_side(model, processor), self.tubelet(model))

    def cell_side(self, model: Any, processor: Any) -> int:
        return model.config.vision_config.patch_size * self.merge(model, processor.preprocess_config)

    def between_runs(self, processor: Any) -> str:
        end, start = ("vision_end_token", "<|vision_end|>"), ("vision_start_token", "<|vision_start|>")
        return processor.token(*end) + processor.token(*start)

    def prepare_at(self, model: Any, processor: Any, video: Video, size: tuple[int, int] | None) -> PreparedVideo:
        assert size is not None
        config, merge = processor.preprocess_config, self.merge(model, processor.preprocess_config)
        frames = normalize(resize(video.frames, size, config["resample"]), config)
        patches, (t, h, w) = pack(frames, model.config.vision_config.patch_size, merge, self.tubelet(model))
        prepared = self.describe(model, processor, video, Grid(t, h // merge, w // merge))
        prepared.inputs["pixel_values_videos"] = patches
        return prepared

    def describe(self, model: Any, processor: Any, video: Video, grid: Grid) -> PreparedVideo:
        tubelet, merge = self.tubelet(model), self.merge(model, processor.preprocess_config)
        shape = grid.T, grid.H * merge, grid.W * merge
        prepared = PreparedVideo({"video_grid_thw": torch.tensor([shape])})
        prepared.text = self.placeholder_text(processor, video, grid.T, grid.cells_per_frame, tubelet)
        self.extra_inputs(prepared.inputs, video, tubelet, merge)
        return prepared

    def prepare_images(self, model: Any, processor: Any, images: Sequence[Video]) -> list[PreparedVideo]:
        inputs = processor.image_inputs(images)
        grids = inputs["image_grid_thw"]
        patches = inputs.pop("pixel_values").split(grids.prod(1).tolist())
        prepared = []
        for index, merge in enumerate(self.merges(model, "image", inputs, len(grids))):
            assert merge is not None
            own = {"pixel_values": patches[index]} | {name: value[index : index + 1] for name, value in inputs.items()}
            cells = int(grids[index].prod()) // merge**2
            prepared.append(PreparedVideo(own, processor.markers["image"] * cells))
        return prepared

    def tubelet(self, model: Any) -> int:
        return attribute(model.config.vision_config, "temporal_patch_size")

    def merge(self, model: Any, config: dict[str, Any]) -> int:
        """The number of patches of a video that are merged along each side."""
        return model.config.vision_config.spatial_merge_size

    def target(self, config: dict[str, Any], video: Video, factor: int, tubelet: int) -> tuple[int, int]:
        """The height and width to which frames are resized."""
        min_pixels, max_pixels = pixel_limits(config)
        if config.get("cap_pixels_per_frame"):
            per_frame = int(config.get("max_video_tokens", 128000) * factor * factor * 0.9) * tubelet // len(video)
            max_pixels = max(min(max_pixels, per_frame), int(min_pixels * 1.05))
        return whole_patches(*video.size, factor, min_pixels, max_pixels)

    def placeholder_text(self, processor: Any, video: Video, steps: int, cells: int, tubelet: int) -> str:
        """The text that represents a video of `steps` steps with `cells` cells each."""
        return processor.placeholder * (steps * cells)

    def extra_inputs(self, inputs: dict[str, Any], video: Video, tubelet: int, merge: int) -> None:
        """Adds further inputs of the model."""
