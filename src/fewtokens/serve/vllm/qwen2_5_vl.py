"""Qwen2.5-VL: one run of placeholders per video, positions (t, h, w) in absolute time."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from vllm.model_executor.models.qwen2_5_vl import (
    Qwen2_5_VLDummyInputsBuilder,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2_5_VLMultiModalProcessor,
    Qwen2_5_VLProcessingInfo,
)
from vllm.multimodal import MULTIMODAL_REGISTRY

from fewtokens.serve.contract import positions, reduce
from fewtokens.serve.mrope import append_positions
from fewtokens.serve.vllm.mrope import FewTokensMRope, PatchProcessor, merged_grid


class Qwen25VLProcessor(PatchProcessor, Qwen2_5_VLMultiModalProcessor):
    """Counts the placeholders of a video by the spec."""


@MULTIMODAL_REGISTRY.register_processor(
    Qwen25VLProcessor, info=Qwen2_5_VLProcessingInfo, dummy_inputs=Qwen2_5_VLDummyInputsBuilder
)
class Qwen25VL(FewTokensMRope, Qwen2_5_VLForConditionalGeneration):
    """Reduces the rows of a video after the encoder."""

    def extent(self, feature: Any) -> int:
        return self.side(feature)

    def _postprocess_video_embeds_evs(self, video_embeds_split: Any, video_input: Any) -> tuple[Tensor, ...]:
        if self.spec is None:
            return super()._postprocess_video_embeds_evs(video_embeds_split, video_input)
        sizes = video_input["video_grid_thw"].tolist()
        seconds = video_input.get("second_per_grid_ts")
        seconds = [1.0] * len(sizes) if seconds is None else seconds.flatten().tolist()
        pixels = self.pixels(video_input, sizes)
        reduced = []
        for rows, size, second, cue in zip(video_embeds_split, sizes, seconds, pixels, strict=True):
            grid = merged_grid(self.config, size)
            out = reduce(self.spec, rows, grid, pixels=cue)
            full = grid.positions(rows.device).long()
            # In float32, as transformers.
            time = (torch.arange(grid.T) * (self.config.vision_config.tokens_per_second * second)).long()
            full[:, 0] = time.to(rows.device)[full[:, 0]]
            reduced.append(append_positions(out.rows, positions(out.cell, full)))
        return tuple(reduced)
