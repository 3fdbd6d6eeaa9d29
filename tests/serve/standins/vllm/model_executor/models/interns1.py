from torch import nn

from vllm.multimodal.processing import BaseMultiModalProcessor, PromptReplacement, PromptUpdateDetails


class InternS1ProcessingInfo: ...


class InternS1DummyInputsBuilder: ...


class InternS1MultiModalProcessor(BaseMultiModalProcessor):
    def _get_prompt_updates(self, mm_items, hf_processor_mm_kwargs, out_mm_kwargs):
        processor, tokenizer = self.info.get_hf_processor(), self.info.get_tokenizer()
        video_token_id = tokenizer.convert_tokens_to_ids(processor.video_token)

        def get_replacement_interns1_video(item_idx):
            ids = []
            for frame in range(int(out_mm_kwargs["video"][item_idx]["video_num_patches"].data)):
                rows = [video_token_id] * processor.image_seq_length
                ids += [50 + frame, processor.start, *rows, processor.end]
            return PromptUpdateDetails.select_token_id(ids, video_token_id)

        return [PromptReplacement(modality="video", target=[1], replacement=get_replacement_interns1_video)]


class InternS1ForConditionalGeneration(nn.Module):
    def __init__(self, *, vllm_config, prefix=""):
        super().__init__()
        self.config = vllm_config.model_config.hf_config

    def _process_vision_input(self, image_input):
        """Rows [9*T,3]: the means of 3 x 3 regions of each picture."""
        rows = nn.functional.adaptive_avg_pool2d(image_input["pixel_values"], 3).flatten(2).transpose(1, 2)
        return [own.flatten(0, 1) for own in rows.split(image_input["num_patches"].tolist())]

    def embed_multimodal(self, **kwargs):
        return self._process_vision_input({**kwargs, "type": "pixel_values_videos"})
