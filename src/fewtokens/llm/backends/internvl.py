"""InternVL 3: a video is pictures in a row, "Frame 1: ..." before each. arXiv 2504.10479."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

from torch import nn

from fewtokens.llm.backends.base import IMAGENET_MEAN, IMAGENET_STD, Family, Visual, grouped_blocks, to_unit_pixels
from fewtokens.llm.pixels import Prepared, fit, normalise
from fewtokens.video import Video


class InternVL(Family):
    """Rows of a video: T runs of 16 x 16, with words between them. Frames and images share one placeholder."""

    name = "internvl"
    needs_items = True
    stacked: ClassVar = ("image",)
    mean, std = IMAGENET_MEAN, IMAGENET_STD
    mark = "<video>"

    def defaults(self, config: Any) -> dict[str, Any]:
        height, width = config.vision_config.image_size
        return super().defaults(config) | {"size": {"height": height, "width": width}}

    def prepare(self, model: Any, words: Any, video: Video) -> Prepared:
        numbers = words.numbers
        if isinstance(numbers["size"], int):
            numbers = numbers | {"size": {"height": numbers["size"], "width": numbers["size"]}}
        frames = normalise(fit(video.frames, numbers), numbers)
        vision = model.config.vision_config
        cells = 1
        for side, patch in zip(vision.image_size, vision.patch_size, strict=True):
            cells *= int(side // patch * model.config.downsample_ratio)
        start, end = words.token("start_image_token", "<img>"), words.token("end_image_token", "</img>")
        run = start + words.placeholder * cells + end
        text = "\n".join(f"Frame{number}: {run}" for number in range(1, len(frames) + 1))
        return Prepared({"pixel_values": frames}, text)

    def visuals(
        self, model: nn.Module, modality: str, outputs: Any, inputs: dict[str, Any], items: Sequence[Any], pixels: bool
    ) -> list[Visual]:
        frames = to_unit_pixels(inputs["pixel_values"], self.mean, self.std) if pixels else None
        return grouped_blocks(list(outputs.pooler_output), items, frames, self.name)
