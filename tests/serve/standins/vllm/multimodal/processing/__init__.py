from vllm.multimodal.processing.inputs import ProcessorInputs
from vllm.multimodal.processing.processor import BaseMultiModalProcessor, PromptReplacement, PromptUpdateDetails

__all__ = ["BaseMultiModalProcessor", "ProcessorInputs", "PromptReplacement", "PromptUpdateDetails"]
