import torch

from vllm.model_executor.models.qwen2_5_vl import Qwen2_5_VLForConditionalGeneration
from vllm.multimodal.processing import BaseMultiModalProcessor, PromptReplacement, PromptUpdateDetails


class Qwen3VLProcessingInfo: ...


class Qwen3VLDummyInputsBuilder: ...


class Qwen3VLMultiModalProcessor(BaseMultiModalProcessor):
    def _get_prompt_updates(self, mm_items, hf_processor_mm_kwargs, out_mm_kwargs):
        config, tokenizer = self.info.get_hf_config(), self.info.get_tokenizer()
        merge_length = config.vision_config.spatial_merge_size**2

        def get_image_replacement_qwen3vl(item_idx):
            grid_thw = out_mm_kwargs["image"][item_idx]["image_grid_thw"].data
            return [config.image_token_id] * (int(grid_thw.prod()) // merge_length)

        def get_video_replacement_qwen3vl(item_idx):
            item = out_mm_kwargs["video"][item_idx]
            grid_thw, timestamps = item["video_grid_thw"].data, item["timestamps"].data
            # With pruning on, vLLM puts its own count into the first frame, and marks all columns as rows.
            return self.get_video_repl(
                tokens_per_frame=[1] + [0] * (int(grid_thw[0]) - 1),
                timestamps=timestamps,
                tokenizer=tokenizer,
                vision_start_token_id=config.vision_start_token_id,
                vision_end_token_id=config.vision_end_token_id,
                video_token_id=config.video_token_id,
            )

        return [
            PromptReplacement("image", [config.image_token_id], get_image_replacement_qwen3vl),
            PromptReplacement("video", [config.video_token_id], get_video_replacement_qwen3vl),
        ]

    @staticmethod
    def get_video_repl(
        *,
        tokens_per_frame,
        timestamps,
        tokenizer,
        vision_start_token_id,
        vision_end_token_id,
        video_token_id,
        select_token_id=False,
    ):
        ids = []
        for timestamp, count in zip(timestamps, tokens_per_frame, strict=True):
            ids += tokenizer.encode(f"<{timestamp:.1f} seconds>", add_special_tokens=False)
            ids += [vision_start_token_id, *[video_token_id] * count, vision_end_token_id]
        return PromptUpdateDetails.from_seq(ids)


class Qwen3VLForConditionalGeneration(Qwen2_5_VLForConditionalGeneration):
    def __init__(self, *, vllm_config, prefix="model"):
        super().__init__(vllm_config=vllm_config, prefix=prefix)
        self._tokenizer = vllm_config.tokenizer
        self.visual_dim = self.config.vision_config.out_hidden_size
        self.table = torch.randn(
            self.config.text_config.vocab_size, self.visual_dim, generator=torch.Generator().manual_seed(0)
        )

    def get_language_model(self):
        return self

    def embed_input_ids(self, input_ids, multimodal_embeddings=None, *, is_multimodal=None):
        return self.table[input_ids]
