"""Qwen2-VL: any image size, tubelets of two frames, 2 x 2 patches merged, positions (t, h, w). arXiv 2409.12191."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from fewtokens.llm.backends.base import CLIP_MEAN, CLIP_STD, Backend
from fewtokens.llm.backends.rows import RowLayout
from fewtokens.llm.interface import attribute
from fewtokens.llm.pixels import PreparedVideo, normalize, pack, pixel_limits, resize, whole_patches
from fewtokens.video import Video


class Qwen2VL(Backend):
    """Rows of a video: T/2 x H/28 x W/28, in raster order."""

    name = "qwen2_vl"
    cues: ClassVar = ("text", "frame_global", "pixels")
    mean, std = CLIP_MEAN, CLIP_STD
    preprocess_config: ClassVar = {"size": {"shortest_edge": 128 * 28 * 28, "longest_edge": 768 * 28 * 28}}

    def prepare(self, model: Any, processor: Any, video: Video) -> PreparedVideo:
        tubelet, patch = self.tubelet(model), model.config.vision_config.patch_size
        merge = self.merge(model, processor.preprocess_config)
        size = self.target(processor.preprocess_config, video, patch * merge, tubelet)
        frames = normalize(
            resize(video.frames, size, processor.preprocess_config["resample"]), processor.preprocess_config
        )
        patches, shape = pack(frames, patch, merge, tubelet)
        cells = shape[1] * shape[2] // merge**2
        prepared = PreparedVideo({"pixel_values_videos": patches, "video_grid_thw": torch.tensor([shape])})
        prepared.text = self.placeholder_text(processor, video, shape[0], cells, tubelet)
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
        """The number of frames in a step of the grid."""
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

    def pixels(self, model: Any, modality: str, inputs: dict[str, Any], entries: slice, layout: RowLayout) -> Tensor:
        counts = inputs[f"{modality}_grid_thw"].prod(1)
        start, stop = (int(counts[:end].sum()) for end in (entries.start, entries.stop))
        patches = next(inputs[name] for name in self.pixel_inputs[modality] if inputs.get(name) is not None)[start:stop]
        return self.packed_pixels(patches, math.isqrt(len(patches) // layout.grid.cells), model)

    def packed_pixels(self, packed: Tensor, merge: int, model: Any) -> Tensor:
        """The cue `pixels` from patches as packed for the encoder, where those of a cell are consecutive."""
        frames, side = self.tubelet(model), model.config.vision_config.patch_size
        patches = packed.float().reshape(-1, merge, merge, 3, frames, side, side)
        mean, std = (patches.new_tensor(part).reshape(3, 1, 1, 1) for part in (self.mean, self.std))
        unit = (patches * std + mean).clamp(0, 1)
        # cell, sub-frame, row, column, channel
        cells = unit.permute(0, 4, 1, 5, 2, 6, 3).reshape(len(unit), frames, -1, 3)
        return torch.flatten(cells, 2)
