from abc import ABC
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch


@dataclass
class PromptUpdateDetails:
    full: list[int]
    is_embed: Callable[[list[int]], Any] | None = None

    @staticmethod
    def from_seq(seq):
        return PromptUpdateDetails(full=seq)

    @staticmethod
    def select_token_id(seq, embed_token_id):
        return PromptUpdateDetails(full=seq, is_embed=lambda full: torch.tensor(full) == embed_token_id)


@dataclass
class PromptUpdate(ABC):
    modality: str
    target: Any


@dataclass
class PromptReplacement(PromptUpdate):
    replacement: Any = field(repr=False)

    @property
    def content(self):
        return self.replacement


class BaseMultiModalProcessor(ABC):  # noqa: B024
    def __init__(self, info, dummy_inputs):
        self.info = info
        self.dummy_inputs = dummy_inputs

    def _get_prompt_updates(self, mm_items, hf_processor_mm_kwargs, out_mm_kwargs):
        raise NotImplementedError

    def _get_mm_hashes(self, inputs):
        return inputs.get_mm_hashes(self.info.model_id, self.info.ctx.get_mm_config().mm_hasher_algorithm)
