"""Composed models: a video encoder, a projector and a causal language model, see `fewtokens.llm.composed`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

from torch import Tensor

from fewtokens.llm.backends.base import Backend
from fewtokens.llm.backends.rows import RowLayout, cell_pixels
from fewtokens.llm.interface import cache_of, is_filled
from fewtokens.llm.pixels import PreparedVideo, square_frames
from fewtokens.video import Video


class Composed(Backend):
    """Rows of a video: T x H x W cells, each of pool x pool patches, in raster order."""

    name = "composed"
    needs_items = False
    cues: ClassVar = ("text", "frame_global", "pixels")
    pixel_inputs: ClassVar = {"image": (), "video": ("pixel_values_videos", "video_cells")}

    def prepare(self, model: Any, processor: Any, video: Video) -> PreparedVideo:
        frames = square_frames(video.frames, processor.read_size)
        inputs = {"pixel_values_videos": frames[None], "video_times": video.times[None]}
        return PreparedVideo(inputs, processor.placeholder * model.grid_of(inputs).cells)

    def encode(self, model: Any, modality: str, inputs: dict[str, Any]) -> Any:
        from transformers.modeling_outputs import BaseModelOutputWithPooling

        cells = inputs.get("video_cells")
        if cells is None:
            cells, _ = model.cells(inputs["pixel_values_videos"], inputs.get("video_times"))
        rows: Any = list(model.project(cells))
        return BaseModelOutputWithPooling(pooler_output=rows)

    def layouts(
        self, model: Any, modality: str, inputs: dict[str, Any], entries: Sequence[Tensor]
    ) -> Sequence[RowLayout | None]:
        return [RowLayout(grid) for grid in model.grid_of(inputs).videos(len(entries))]

    def pixels(self, model: Any, modality: str, inputs: dict[str, Any], entries: slice, layout: RowLayout) -> Tensor:
        frames = inputs.get("pixel_values_videos")
        if frames is None:
            raise ValueError(
                "methods that read pixels require the frames (pixel_values_videos), not encoded cells (video_cells)"
            )
        return cell_pixels(frames[entries].flatten(0, 1).float() / 255, layout.grid)

    def consumed(self, model: Any) -> set[str]:
        return {"pixel_values_videos", "video_times", "video_cells", "video_grid"}

    def default_positions(self, model: Any) -> str:
        return model.positions

    def default_methods(self, model: Any) -> Any:
        return model.compressor

    def context_length(self, model: Any) -> int | None:
        # Any causal language model; some have no limit.
        return getattr(model.config.get_text_config(), "max_position_embeddings", None)

    def causal_lm(self, model: Any) -> Any:
        return model.causal_lm

    def input_features(self, model: Any, inputs: dict[str, Any]) -> dict[str, Any]:
        return {} if is_filled(cache_of(inputs)) else model.current_features
