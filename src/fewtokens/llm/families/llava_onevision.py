"""LLaVA-OneVision: 27 x 27 patches of a frame pooled to 14 x 14, one newline after each video. arXiv 2408.03326."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, ClassVar

from torch import nn

from fewtokens.grid import Grid
from fewtokens.llm.family import Family, Visual, cell_pixels, to_unit_pixels


class LlavaOnevision(Family):
    """Rows of a video: T x 14 x 14, then the newline, which is no cell and stays."""

    name = "llava_onevision"
    stacked: ClassVar = ("video",)

    def visuals(
        self, model: nn.Module, modality: str, outputs: Any, inputs: dict[str, Any], items: Sequence[Any], pixels: bool
    ) -> list[Visual]:
        if modality == "image":
            return [Visual("image", rows) for rows in outputs.pooler_output]
        vision: Any = model.config.vision_config  # type: ignore[union-attr]
        side = math.ceil(vision.image_size // vision.patch_size / 2)
        frames = inputs["pixel_values_videos"]
        grid = Grid(frames.shape[1], side, side)
        return [
            Visual(
                "video",
                rows,
                grid,
                tail=1,
                pixels=cell_pixels(to_unit_pixels(frames[number], self.mean, self.std), grid) if pixels else None,
            )
            for number, rows in enumerate(outputs.pooler_output)
        ]
