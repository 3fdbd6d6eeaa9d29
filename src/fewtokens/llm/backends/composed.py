"""Composed models: a video encoder, a projector and a causal language model, see `fewtokens.llm.composed`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

from torch import nn

from fewtokens.llm.backends.base import Backend, VisualFeatures, cell_pixels
from fewtokens.llm.interface import cache_of, is_filled
from fewtokens.llm.pixels import PreparedVideo, square_frames
from fewtokens.video import Video


class Composed(Backend):
    """Rows of a video: T x H x W cells, each of pool x pool patches, in raster order."""

    name = "composed"
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

    def visuals(
        self, model: nn.Module, modality: str, outputs: Any, inputs: dict[str, Any], items: Sequence[Any], pixels: bool
    ) -> list[VisualFeatures]:
        rows, frames = outputs.pooler_output, inputs.get("pixel_values_videos")
        if pixels and frames is None:
            raise ValueError(
                "methods that read pixels require the frames (pixel_values_videos), not encoded cells (video_cells)"
            )
        grids = model.grid_of(inputs).videos(len(rows))  # type: ignore[operator]
        return [
            VisualFeatures(
                "video",
                row,
                grid,
                pixels=cell_pixels(frames[index].float() / 255, grid) if pixels and frames is not None else None,
            )
            for index, (row, grid) in enumerate(zip(rows, grids, strict=True))
        ]

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
