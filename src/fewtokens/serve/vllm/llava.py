"""LLaVA-OneVision and LLaVA-NeXT-Video: one run of placeholders per video, square frames."""

from __future__ import annotations

from typing import Any

from vllm.model_executor.models.llava_next_video import (
    LlavaNextVideoDummyInputsBuilder,
    LlavaNextVideoForConditionalGeneration,
    LlavaNextVideoMultiModalProcessor,
    LlavaNextVideoProcessingInfo,
)
from vllm.model_executor.models.llava_onevision import (
    LlavaOnevisionDummyInputsBuilder,
    LlavaOnevisionForConditionalGeneration,
    LlavaOnevisionMultiModalProcessor,
    LlavaOnevisionProcessingInfo,
)
from vllm.multimodal import MULTIMODAL_REGISTRY

from fewtokens.core.grid import Grid
from fewtokens.serve.vllm.plain import FewTokensPlain, square_grid
from fewtokens.serve.vllm.processor import FewTokensProcessor


class LlavaProcessor(FewTokensProcessor):
    """Counts the placeholders of a video by the spec; frames are squares of cells."""

    def grid(self, item: Any) -> Grid:
        frames = len(item["pixel_values_videos"].data)
        # The frames that the encoder receives all have one size, so the count does not depend on that of the file.
        size = self.info.get_vision_encoder_info().get_image_size()
        rows = self.info.get_num_video_tokens(image_width=size, image_height=size, num_frames=frames)
        return square_grid(frames, rows - self.tail)

    def placeholder(self) -> int:
        return int(self.info.get_hf_config().video_token_index)


class LlavaVideo(FewTokensPlain):
    """Reduces the rows of a video after the projector."""

    def _process_video_pixels(self, inputs: Any) -> Any:
        rows = super()._process_video_pixels(inputs)  # type: ignore[misc]
        if self.spec is None:
            return rows
        videos = inputs["pixel_values_videos"]
        return [self.reduce_video(own, frames) for own, frames in zip(rows, videos, strict=True)]


class OneVisionProcessor(LlavaProcessor, LlavaOnevisionMultiModalProcessor):
    """The newline after a video stays."""

    tail = 1


@MULTIMODAL_REGISTRY.register_processor(
    OneVisionProcessor, info=LlavaOnevisionProcessingInfo, dummy_inputs=LlavaOnevisionDummyInputsBuilder
)
class OneVision(LlavaVideo, LlavaOnevisionForConditionalGeneration):
    """LLaVA-OneVision."""

    tail = 1


class NextVideoProcessor(LlavaProcessor, LlavaNextVideoMultiModalProcessor):
    """LLaVA-NeXT-Video has no newline after a video."""


@MULTIMODAL_REGISTRY.register_processor(
    NextVideoProcessor, info=LlavaNextVideoProcessingInfo, dummy_inputs=LlavaNextVideoDummyInputsBuilder
)
class NextVideo(LlavaVideo, LlavaNextVideoForConditionalGeneration):
    """LLaVA-NeXT-Video."""
