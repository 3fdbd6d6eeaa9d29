from vllm.multimodal.registry import MultiModalRegistry

MULTIMODAL_REGISTRY = MultiModalRegistry()
