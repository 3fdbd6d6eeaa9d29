"""The plugin for vLLM: few tokens of videos by a spec, without changes to vLLM.

    vllm serve Qwen/Qwen2.5-VL-3B-Instruct --additional-config '{"fewtokens": {"spec": "kmeans(keep=0.25)"}}'

vLLM calls `register` in each of its processes, by the entry point `vllm.general_plugins`. It replaces the classes of
the supported models by subclasses; without a spec these do what vLLM does.
"""

from __future__ import annotations

# Architecture of a checkpoint -> module and class of the model.
MODELS = {
    "InternVLChatModel": "fewtokens.serve.vllm.internvl:InternVL",
    "InternVLForConditionalGeneration": "fewtokens.serve.vllm.internvl:InternVLHF",
    "LlavaNextVideoForConditionalGeneration": "fewtokens.serve.vllm.llava:NextVideo",
    "LlavaOnevisionForConditionalGeneration": "fewtokens.serve.vllm.llava:OneVision",
    "Qwen2_5_VLForConditionalGeneration": "fewtokens.serve.vllm.qwen2_5_vl:Qwen25VL",
    "Qwen3VLForConditionalGeneration": "fewtokens.serve.vllm.qwen3_vl:Qwen3VL",
    "Qwen3VLMoeForConditionalGeneration": "fewtokens.serve.vllm.qwen3_vl:Qwen3VLMoe",
}


def register() -> None:
    """Registers the models and the functions that read the spec; may be called repeatedly."""
    from vllm.model_executor.models.config import MODELS_CONFIG_MAP, VerifyAndUpdateConfig
    from vllm.model_executor.models.registry import ModelRegistry

    from fewtokens.serve.vllm.settings import ReadSpec, RefuseSpec

    for architecture in ModelRegistry.get_supported_archs() - MODELS.keys():
        stock = MODELS_CONFIG_MAP.get(architecture, VerifyAndUpdateConfig)
        if not issubclass(stock, RefuseSpec):
            MODELS_CONFIG_MAP[architecture] = type("RefuseSpec", (RefuseSpec, stock), {})
    for architecture, model in MODELS.items():
        ModelRegistry.register_model(architecture, model)
        MODELS_CONFIG_MAP[architecture] = ReadSpec
