"""Qwen2-VL: any picture size, tubelets of two frames, 2 x 2 patches merged, positions (t, h, w). arXiv 2409.12191."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from fewtokens.grid import Grid
from fewtokens.llm.family import CLIP_MEAN, CLIP_STD, Family, Visual


class Qwen2VL(Family):
    """Rows of a video: T/2 x H/28 x W/28, in raster order."""

    name = "qwen2_vl"
    mrope = True
    mean, std = CLIP_MEAN, CLIP_STD

    def visuals(
        self, model: nn.Module, modality: str, outputs: Any, inputs: dict[str, Any], items: Sequence[Any], pixels: bool
    ) -> list[Visual]:
        shapes = inputs[f"{modality}_grid_thw"].tolist()
        merges = self.merges(model, modality, inputs)
        deepstack = [list(layers) for layers in zip(*(getattr(outputs, "deepstack_features", None) or ()), strict=True)]
        visuals, at = [], 0
        for number, (rows, (t, h, w), merge) in enumerate(zip(outputs.pooler_output, shapes, merges, strict=True)):
            visual = Visual(modality, rows, deepstack=deepstack[number] if deepstack else [])
            if modality == "video":
                visual.grid = Grid(t, h // merge, w // merge)
                if pixels:
                    packed = inputs["pixel_values_videos"][at : at + t * h * w]
                    visual.pixels = self.packed_pixels(packed, merge, model)
            visuals.append(visual)
            at += t * h * w
        return visuals

    def merges(self, model: Any, modality: str, inputs: dict[str, Any]) -> list[int]:
        """By how much the patches of each picture or video are merged along a side."""
        return [model.config.vision_config.spatial_merge_size] * len(inputs[f"{modality}_grid_thw"])

    def packed_pixels(self, packed: Tensor, merge: int, model: Any) -> Tensor:
        """The cue `pixels` out of patches as they are packed for the encoder: those of a cell lie side by side."""
        vision = model.config.vision_config
        frames, side = getattr(vision, "temporal_patch_size", 1), vision.patch_size
        patches = packed.float().reshape(-1, merge, merge, 3, frames, side, side)
        mean, std = (patches.new_tensor(part).reshape(3, 1, 1, 1) for part in (self.mean, self.std))
        unit = (patches * std + mean).clamp(0, 1)
        # cell, sub-frame, row, column, channel
        cells = unit.permute(0, 4, 1, 5, 2, 6, 3).reshape(len(unit), frames, -1, 3)
        return torch.flatten(cells, 2)
