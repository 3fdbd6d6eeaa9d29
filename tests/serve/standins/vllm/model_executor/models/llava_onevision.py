import torch

from vllm.model_executor.models.llava_next_video import (
    LlavaNextVideoForConditionalGeneration,
    LlavaNextVideoMultiModalProcessor,
    LlavaNextVideoProcessingInfo,
)


class LlavaOnevisionProcessingInfo(LlavaNextVideoProcessingInfo):
    def get_num_video_tokens(self, *, image_width, image_height, num_frames):
        return 9 * num_frames + 1


class LlavaOnevisionDummyInputsBuilder: ...


class LlavaOnevisionMultiModalProcessor(LlavaNextVideoMultiModalProcessor): ...


class LlavaOnevisionForConditionalGeneration(LlavaNextVideoForConditionalGeneration):
    def _process_video_pixels(self, inputs):
        newline = torch.full((1, 3), 7.0)
        return [torch.cat([rows, newline]) for rows in super()._process_video_pixels(inputs)]
