"""InternVL: the frames of a video are pictures with text between them, which goes: its tokens form one block.

In both layouts of its checkpoints: that of its publishers, `InternVLChatModel`, and that of transformers.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from torch import Tensor
from vllm.model_executor.models.interns1 import (
    InternS1DummyInputsBuilder,
    InternS1ForConditionalGeneration,
    InternS1MultiModalProcessor,
    InternS1ProcessingInfo,
)
from vllm.model_executor.models.internvl import (
    InternVLChatModel,
    InternVLDummyInputsBuilder,
    InternVLMultiModalProcessor,
    InternVLProcessingInfo,
)
from vllm.multimodal import MULTIMODAL_REGISTRY
from vllm.multimodal.processing import PromptUpdateDetails
from vllm.transformers_utils.processors.internvl import IMAGENET_MEAN, IMAGENET_STD

from fewtokens.core.grid import Grid
from fewtokens.serve.vllm.plain import FewTokensPlain, square_grid
from fewtokens.serve.vllm.processor import FewTokensProcessor


class FrameProcessor(FewTokensProcessor):
    """Counts the placeholders of a video by the spec."""

    def grid(self, item: Any) -> Grid:
        frames = int(item["video_num_patches"].data)
        return square_grid(frames, frames * self.info.get_hf_processor().image_seq_length)

    def layout(self, ids: list[int], placeholder: int, count: int) -> Any:
        """Frame1: <img>, the tokens of all frames, </img>."""
        first, last = ids.index(placeholder), len(ids) - ids[::-1].index(placeholder)
        block = [*ids[:first], *[placeholder] * count, *ids[last:]]
        return PromptUpdateDetails.select_token_id(block, placeholder)


class FrameVideo(FewTokensPlain):
    """Reduces the rows of a video after the projector."""

    # The name of the frames of all videos.
    frames: str

    def _process_vision_input(self, image_input: Any) -> tuple[Tensor, ...]:
        rows: tuple[Tensor, ...] = super()._process_vision_input(image_input)  # type: ignore[misc]
        if self.spec is None or image_input["type"] != "pixel_values_videos":
            return rows
        frames = image_input[self.frames].split(image_input["num_patches"].tolist())
        return tuple(self.reduce_video(own, video) for own, video in zip(rows, frames, strict=True))


class InternVLProcessor(FrameProcessor, InternVLMultiModalProcessor):
    """Of the layout of its publishers."""

    def placeholder(self) -> int:
        return int(self.info.get_hf_processor().ctx_video_token_id)


@MULTIMODAL_REGISTRY.register_processor(
    InternVLProcessor, info=InternVLProcessingInfo, dummy_inputs=InternVLDummyInputsBuilder
)
class InternVL(FrameVideo, InternVLChatModel):
    """Of the layout of its publishers."""

    frames = "pixel_values_flat"

    def normalization(self) -> tuple[list[float], list[float]]:
        # Such a checkpoint has no processor of transformers.
        return list(IMAGENET_MEAN), list(IMAGENET_STD)

    def get_encoder_cudagraph_config(self) -> Any:
        config = super().get_encoder_cudagraph_config()
        # A captured encoder returns all rows.
        kept = [modality for modality in config.modalities if self.spec is None or modality != "video"]
        return replace(config, modalities=kept)


class InternVLHFProcessor(FrameProcessor, InternS1MultiModalProcessor):
    """Of the layout of transformers."""

    def placeholder(self) -> int:
        token = self.info.get_hf_processor().video_token
        return int(self.info.get_tokenizer().convert_tokens_to_ids(token))


@MULTIMODAL_REGISTRY.register_processor(
    InternVLHFProcessor, info=InternS1ProcessingInfo, dummy_inputs=InternS1DummyInputsBuilder
)
class InternVLHF(FrameVideo, InternS1ForConditionalGeneration):
    """Of the layout of transformers, which vLLM runs by the class of Intern-S1."""

    frames = "pixel_values"
