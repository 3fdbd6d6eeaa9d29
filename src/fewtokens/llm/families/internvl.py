"""InternVL 3: a video is pictures in a row, "Frame 1: ..." before each. arXiv 2504.10479."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

from torch import nn

from fewtokens.llm.family import IMAGENET_MEAN, IMAGENET_STD, Family, Visual, grouped_blocks, to_unit_pixels


class InternVL(Family):
    """Rows of a video: T runs of 16 x 16, with words between them. Frames and images share one placeholder."""

    name = "internvl"
    needs_items = True
    stacked: ClassVar = ("image",)
    mean, std = IMAGENET_MEAN, IMAGENET_STD

    def visuals(
        self, model: nn.Module, modality: str, outputs: Any, inputs: dict[str, Any], items: Sequence[Any], pixels: bool
    ) -> list[Visual]:
        frames = to_unit_pixels(inputs["pixel_values"], self.mean, self.std) if pixels else None
        return grouped_blocks(list(outputs.pooler_output), items, frames, self.name)
