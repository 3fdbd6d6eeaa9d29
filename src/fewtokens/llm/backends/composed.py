"""Composed models: a video encoder, a projector and a causal language model, see `fewtokens.llm.composed`."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, ClassVar

from torch import Tensor, nn

from fewtokens.core.attention_rule import AttentionRule
from fewtokens.core.cell_pixels import cell_pixels
from fewtokens.core.grid import Grid
from fewtokens.core.method import Method
from fewtokens.core.pipeline import check_received
from fewtokens.llm.backends.base import Backend
from fewtokens.llm.backends.rows import RowLayout, VisualFeatures
from fewtokens.llm.interface import cache_of, is_filled
from fewtokens.llm.pixels import PreparedVideo, square_frames
from fewtokens.llm.tower import TOWER_CUES
from fewtokens.video import Video


class Composed(Backend):
    """Rows of a video: cells of pool x pool patches in raster order, then those of a second encoder."""

    name = "composed"
    needs_items = False
    pixel_inputs: ClassVar = {"image": (), "video": ("pixel_values_videos", "video_cells")}

    def prepare(self, model: Any, processor: Any, video: Video) -> PreparedVideo:
        frames = square_frames(video.frames, processor.read_size)
        inputs = {"pixel_values_videos": frames[None], "video_times": video.times[None]}
        return PreparedVideo(inputs, processor.placeholder * sum(grid.cells for grid in model.grids_of(inputs)))

    def describe(self, model: Any, processor: Any, video: Video, grid: Grid) -> PreparedVideo:
        if model.encoder2 is not None or model.streams is not None:
            raise ValueError(
                "a model with two encoders or with streams reads more than one token per cell; use one without"
            )
        return PreparedVideo(text=processor.placeholder * grid.cells)

    def encode(self, model: Any, modality: str, inputs: dict[str, Any]) -> Any:
        from transformers.modeling_outputs import BaseModelOutputWithPooling

        projected = model.rows(inputs)
        rows: Any = list(projected)
        # Streams read all tokens; `pack` keeps them.
        slow = projected if model.streams is not None else None
        return BaseModelOutputWithPooling(last_hidden_state=slow, pooler_output=rows)

    def pack(self, modality: str, outputs: Any, visuals: Sequence[VisualFeatures]) -> Any:
        packed = super().pack(modality, outputs, visuals)
        if outputs.last_hidden_state is not None:
            packed["last_hidden_state"] = outputs.last_hidden_state
        return packed

    def layouts(
        self, model: Any, modality: str, inputs: dict[str, Any], entries: Sequence[Tensor]
    ) -> Sequence[RowLayout | None]:
        layouts: list[RowLayout | None] = [None] * len(entries)
        for grid in reversed(model.grids_of(inputs)):
            layouts = [RowLayout(own, rest=rest) for own, rest in zip(grid.videos(len(entries)), layouts, strict=True)]
        return layouts

    def pixels(self, model: Any, modality: str, inputs: dict[str, Any], entries: slice, layout: RowLayout) -> Tensor:
        frames = inputs.get("pixel_values_videos")
        if frames is None:
            raise ValueError(
                "methods that read pixels require the frames (pixel_values_videos), not encoded cells (video_cells)"
            )
        return cell_pixels(frames[entries].flatten(0, 1).float() / 255, layout.grid)

    def consumed(self, model: Any) -> set[str]:
        return {"pixel_values_videos", "video_times", "video_cells", "video_grid", "video_cues"}

    def available_cues(self, model: Any) -> tuple[str, ...]:
        return model.cues

    def check_attention(self, model: Any, method: Method) -> None:
        check_received(method, "the encoder of a composed model")

    @contextmanager
    def recording(
        self, model: Any, modality: str, inputs: dict[str, Any], needs: Collection[str], rule: AttentionRule
    ) -> Iterator[Callable[[Sequence[VisualFeatures]], None]]:
        names = [name for name in TOWER_CUES if name in needs]
        if not names:
            yield lambda visuals: None
            return
        given = inputs.get("video_cues") or {}
        found: dict[str, Tensor] = {}

        def request(encoder: nn.Module, args: Any, options: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
            return args, options | {"needs": names}

        def keep(encoder: nn.Module, args: Any, output: Any) -> None:
            found.update(output[1])

        def set_cues(visuals: Sequence[VisualFeatures]) -> None:
            if missing := [name for name in names if name not in found and name not in given]:
                raise ValueError(
                    f"methods that read {', '.join(missing)} require the frames (pixel_values_videos), or encoded "
                    "cells (video_cells) with these cues (video_cues)"
                )
            for index, visual in enumerate(visuals):
                pooled = {name: model.pool_cue(cue[index], visual.grid) for name, cue in found.items()}
                visual.cues = {name: given[name][index].float() for name in names if name in given} | pooled

        hooks = [
            model.video_encoder.register_forward_pre_hook(request, with_kwargs=True),
            model.video_encoder.register_forward_hook(keep),
        ]
        try:
            yield set_cues
        finally:
            for hook in hooks:
                hook.remove()

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
