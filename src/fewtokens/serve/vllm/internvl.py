"""InternVL: the frames of a video are pictures with text between them, which goes: its tokens form one block."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from torch import Tensor
from vllm.model_executor.models.internvl import (
    InternVLChatModel,
    InternVLDummyInputsBuilder,
    InternVLMultiModalProcessor,
    InternVLProcessingInfo,
)
from vllm.multimodal import MULTIMODAL_REGISTRY
from vllm.multimodal.processing import PromptUpdateDetails

from fewtokens.core.grid import Grid
from fewtokens.serve.vllm.plain import FewTokensPlain, square_grid
from fewtokens.serve.vllm.processor import FewTokensProcessor


class InternVLProcessor(FewTokensProcessor, InternVLMultiModalProcessor):
    """Counts the placeholders of a video by the spec."""

    def grid(self, item: Any) -> Grid:
        frames = int(item["video_num_patches"].data)
        return square_grid(frames, frames * self.info.get_hf_processor().image_seq_length)

    def placeholder(self) -> int:
        return int(self.info.get_hf_processor().ctx_video_token_id)

    def layout(self, ids: list[int], placeholder: int, count: int) -> Any:
        """Frame1: <img>, the tokens of all frames, </img>."""
        first, last = ids.index(placeholder), len(ids) - ids[::-1].index(placeholder)
        block = [*ids[:first], *[placeholder] * count, *ids[last:]]
        return PromptUpdateDetails.select_token_id(block, placeholder)


@MULTIMODAL_REGISTRY.register_processor(
    InternVLProcessor, info=InternVLProcessingInfo, dummy_inputs=InternVLDummyInputsBuilder
)
class InternVL(FewTokensPlain, InternVLChatModel):
    """Reduces the rows of a video after the projector."""

    def _process_vision_input(self, image_input: Any) -> tuple[Tensor, ...]:
        rows = super()._process_vision_input(image_input)
        if self.spec is None or image_input["type"] != "pixel_values_videos":
            return rows
        frames = image_input["pixel_values_flat"].split(image_input["num_patches"].tolist())
        return tuple(self.reduce_video(own, video) for own, video in zip(rows, frames, strict=True))

    def get_encoder_cudagraph_config(self) -> Any:
        config = super().get_encoder_cudagraph_config()
        # A captured encoder returns all rows.
        kept = [modality for modality in config.modalities if self.spec is None or modality != "video"]
        return replace(config, modalities=kept)
