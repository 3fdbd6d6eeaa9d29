"""InternVL 3: a video is a sequence of images, each after "Frame 1: ..." and so on. arXiv 2504.10479."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

from fewtokens.core.grid import Grid
from fewtokens.llm.backends.base import IMAGENET_MEAN, IMAGENET_STD, Backend
from fewtokens.llm.pixels import PreparedVideo, fit, normalize
from fewtokens.video import Video


class InternVL(Backend):
    """Rows of a video: T runs of 16 x 16, with text between them. Frames and images share one placeholder."""

    name = "internvl"
    needs_items = True
    cues: ClassVar = ("text", "frame_global", "pixels")
    mean, std = IMAGENET_MEAN, IMAGENET_STD
    video_marker = "<video>"

    def defaults(self, config: Any) -> dict[str, Any]:
        height, width = config.vision_config.image_size
        return super().defaults(config) | {"size": {"height": height, "width": width}}

    def prepare(self, model: Any, processor: Any, video: Video) -> PreparedVideo:
        config = processor.preprocess_config
        if isinstance(config["size"], int):
            config = config | {"size": {"height": config["size"], "width": config["size"]}}
        frames = normalize(fit(video.frames, config), config)
        prepared = self.describe(model, processor, video, Grid(len(frames), 1, self._cells(model)))
        prepared.inputs["pixel_values"] = frames
        return prepared

    def describe(self, model: Any, processor: Any, video: Video, grid: Grid) -> PreparedVideo:
        run = self._run(processor, grid.cells_per_frame)
        return PreparedVideo(text="\n".join(f"Frame{number}: {run}" for number in range(1, grid.T + 1)))

    def prepare_images(self, model: Any, processor: Any, images: Sequence[Video]) -> list[PreparedVideo]:
        inputs = processor.image_inputs(images, crop_to_patches=True)  # as in the processor of InternVL
        counts = [int(count) for count in inputs["num_patches"]]
        tiles = inputs["pixel_values"].split(counts)
        return [
            PreparedVideo({"pixel_values": own}, self._run(processor, count * self._cells(model)), count)
            for own, count in zip(tiles, counts, strict=True)
        ]

    def _cells(self, model: Any) -> int:
        """The number of cells of a frame or a tile."""
        vision, cells = model.config.vision_config, 1
        for side, patch in zip(vision.image_size, vision.patch_size, strict=True):
            cells *= int(side // patch * model.config.downsample_ratio)
        return cells

    def _run(self, processor: Any, cells: int) -> str:
        """The text for a frame or an image of some cells."""
        start, end = processor.token("start_image_token", "<img>"), processor.token("end_image_token", "</img>")
        return start + processor.placeholder * cells + end
