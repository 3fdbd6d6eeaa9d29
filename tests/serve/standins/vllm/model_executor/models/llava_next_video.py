from torch import nn

from vllm.multimodal.processing import BaseMultiModalProcessor, PromptReplacement


class LlavaNextVideoProcessingInfo:
    def get_num_video_tokens(self, *, image_width, image_height, num_frames):
        return 9 * num_frames


class LlavaNextVideoDummyInputsBuilder: ...


class LlavaNextVideoMultiModalProcessor(BaseMultiModalProcessor):
    def _get_prompt_updates(self, mm_items, hf_processor_mm_kwargs, out_mm_kwargs):
        video_token_id = self.info.get_hf_config().video_token_index

        def get_replacement(item_idx):
            frames = len(out_mm_kwargs["video"][item_idx]["pixel_values_videos"].data)
            return [video_token_id] * self.info.get_num_video_tokens(image_width=1, image_height=1, num_frames=frames)

        return [PromptReplacement(modality="video", target=[video_token_id], replacement=get_replacement)]


class LlavaNextVideoForConditionalGeneration(nn.Module):
    def __init__(self, *, vllm_config, prefix=""):
        super().__init__()
        self.config = vllm_config.model_config.hf_config

    def _process_video_pixels(self, inputs):
        """Rows [9*T,D] of each video: the means of 3 x 3 regions of each frame."""
        frames = [nn.functional.adaptive_avg_pool2d(video, 3) for video in inputs["pixel_values_videos"]]
        return [video.flatten(2).transpose(1, 2).flatten(0, 1) for video in frames]

    def embed_multimodal(self, **kwargs):
        return self._process_video_pixels(kwargs)
