"""Qwen3-VL: timestamps between the frames of a video, and DeepStack features in the columns of its rows.

How many rows a frame keeps is known only after the encoder, but the order of text and rows depends on it. So the prompt
has all placeholders in the first frame, and the rows of a video include those of its text, which replace all of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from vllm.model_executor.models.qwen3_vl import (
    Qwen3VLDummyInputsBuilder,
    Qwen3VLForConditionalGeneration,
    Qwen3VLMultiModalProcessor,
    Qwen3VLProcessingInfo,
)
from vllm.model_executor.models.qwen3_vl_moe import Qwen3VLMoeForConditionalGeneration, Qwen3VLMoeProcessingInfo
from vllm.multimodal import MULTIMODAL_REGISTRY

from fewtokens.core.grid import Grid
from fewtokens.serve.contract import Reduced, planned, positions, reduce
from fewtokens.serve.mrope import append_positions
from fewtokens.serve.vllm.mrope import FewTokensMRope, PatchProcessor, merged_grid


class Qwen3Processor(PatchProcessor, Qwen3VLMultiModalProcessor):
    """Counts the placeholders of a video by the spec."""


class Qwen3Video(FewTokensMRope):
    """Reduces the rows of a video after the encoder and puts the text between its frames."""

    visual_dim: int
    _tokenizer: Any
    get_language_model: Any

    def extent(self, feature: Any) -> int:
        if feature.modality == "image":
            return self.side(feature)
        assert self.spec is not None
        grid = self.grid_of(feature)
        text = feature.mm_position.length - planned(self.spec, grid)
        return text + grid.T * self.side(feature)

    def _postprocess_video_embeds_evs(self, video_embeds_split: Any, video_input: Any) -> tuple[Tensor, ...]:
        if self.spec is None:
            return super()._postprocess_video_embeds_evs(video_embeds_split, video_input)  # type: ignore[misc]
        sizes, times = video_input["video_grid_thw"].tolist(), video_input["timestamps"]
        pixels = self.pixels(video_input, sizes)
        videos = []
        for rows, size, seconds, cue in zip(video_embeds_split, sizes, times, pixels, strict=True):
            grid = merged_grid(self.config, size)
            reduced = reduce(self.spec, rows, grid, width=self.visual_dim, pixels=cue)
            videos.append(self.interleave(reduced, grid, list(seconds)))
        return tuple(videos)

    def interleave(self, reduced: Reduced, grid: Grid, times: Sequence[float]) -> Tensor:
        """The rows of a video and of the text between its frames, with their positions."""
        device, side = reduced.rows.device, max(grid.H, grid.W)
        start, end = self.config.vision_start_token_id, self.config.vision_end_token_id
        counts = torch.bincount(reduced.cell // grid.cells_per_frame, minlength=grid.T).tolist()
        ids: list[int] = []
        text_positions: list[int] = []
        frame_start: list[int] = []
        position = 0
        for time, count in zip(times, counts, strict=True):
            before = [*self._tokenizer.encode(f"<{float(time):.1f} seconds>", add_special_tokens=False), start]
            ids += [*before, *[self.config.video_token_id] * count, end]
            frame_start.append(position + len(before))
            text_positions += [*range(position, frame_start[-1]), frame_start[-1] + side]
            position = frame_start[-1] + side + 1
        token = torch.tensor(ids, device=device)
        is_row = token == self.config.video_token_id
        rows = reduced.rows.new_zeros(len(ids), reduced.rows.shape[1])
        rows[~is_row, : self.visual_dim] = self.get_language_model().embed_input_ids(token[~is_row]).to(rows.dtype)
        rows[is_row] = reduced.rows
        full = grid.positions(device).long()
        full[:, 0] = 0
        full += torch.tensor(frame_start, device=device).repeat_interleave(grid.cells_per_frame)[:, None]
        place = torch.empty(len(ids), 3, dtype=torch.int64, device=device)
        place[~is_row] = torch.tensor(text_positions, device=device)[:, None]
        place[is_row] = positions(reduced.cell, full)
        return append_positions(rows, place, lead=int(frame_start[0]))


@MULTIMODAL_REGISTRY.register_processor(
    Qwen3Processor, info=Qwen3VLProcessingInfo, dummy_inputs=Qwen3VLDummyInputsBuilder
)
class Qwen3VL(Qwen3Video, Qwen3VLForConditionalGeneration):
    """Qwen3-VL."""


@MULTIMODAL_REGISTRY.register_processor(
    Qwen3Processor, info=Qwen3VLMoeProcessingInfo, dummy_inputs=Qwen3VLDummyInputsBuilder
)
class Qwen3VLMoe(Qwen3Video, Qwen3VLMoeForConditionalGeneration):
    """Qwen3-VL with experts."""
