from vllm.model_executor.models.qwen3_vl import Qwen3VLForConditionalGeneration, Qwen3VLProcessingInfo


class Qwen3VLMoeProcessingInfo(Qwen3VLProcessingInfo): ...


class Qwen3VLMoeForConditionalGeneration(Qwen3VLForConditionalGeneration): ...
