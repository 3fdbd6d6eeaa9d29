from functools import partial

from torch import nn

from vllm.multimodal.processing import BaseMultiModalProcessor, PromptReplacement


class Qwen2_5_VLProcessingInfo: ...


class Qwen2_5_VLDummyInputsBuilder: ...


class Qwen2_5_VLMultiModalProcessor(BaseMultiModalProcessor):
    def _get_prompt_updates(self, mm_items, hf_processor_mm_kwargs, out_mm_kwargs):
        config = self.info.get_hf_config()
        ids = {"image": config.image_token_id, "video": config.video_token_id}

        def get_replacement_qwen2vl(item_idx, modality):
            grid_thw = out_mm_kwargs[modality][item_idx][f"{modality}_grid_thw"].data
            return [ids[modality]] * (int(grid_thw.prod()) // config.vision_config.spatial_merge_size**2)

        return [
            PromptReplacement(
                modality=modality,
                target=[ids[modality]],
                replacement=partial(get_replacement_qwen2vl, modality=modality),
            )
            for modality in ("image", "video")
        ]


class Qwen2_5_VLForConditionalGeneration(nn.Module):
    def __init__(self, *, vllm_config, prefix=""):
        super().__init__()
        self.config = vllm_config.model_config.hf_config
        self.model_config = vllm_config.model_config
        self.is_multimodal_pruning_enabled = vllm_config.model_config.multimodal_config.is_multimodal_pruning_enabled()

    def _encode(self, pixels, grid_thw):
        """Rows [n,D] of each item: the mean patch of each cell."""
        unit = self.config.vision_config.spatial_merge_size**2
        rows = pixels.unflatten(0, (-1, unit)).mean(1)
        return rows.split((grid_thw.prod(-1) // unit).tolist())

    def _process_image_input(self, image_input):
        return self._encode(image_input["pixel_values"], image_input["image_grid_thw"])

    def _process_video_input(self, video_input):
        return self._encode(video_input["pixel_values_videos"], video_input["video_grid_thw"])

    def _postprocess_image_embeds_evs(self, image_embeds_split, image_input):
        raise AssertionError("the plugin has its own positions")

    def _postprocess_video_embeds_evs(self, video_embeds_split, video_input):
        raise AssertionError("the plugin has its own positions")

    def get_mrope_input_positions(self, input_tokens, mm_features):
        raise AssertionError("the plugin has its own positions")

    def recompute_mrope_positions(self, input_ids, multimodal_embeddings, mrope_positions, num_computed_tokens):
        raise AssertionError("the plugin has its own positions")

    def embed_multimodal(self, **kwargs):
        embeddings = ()
        for name in kwargs:
            if name == "pixel_values":
                images = self._process_image_input(kwargs)
                if self.is_multimodal_pruning_enabled:
                    images = self._postprocess_image_embeds_evs(images, kwargs)
                embeddings += tuple(images)
            if name == "pixel_values_videos":
                videos = self._process_video_input(kwargs)
                if self.is_multimodal_pruning_enabled:
                    videos = self._postprocess_video_embeds_evs(videos, kwargs)
                embeddings += tuple(videos)
        return embeddings
