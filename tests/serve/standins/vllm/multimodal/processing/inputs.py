import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass
class ProcessorInputs:
    prompt: list[int]
    mm_data_items: Any
    mm_uuid_items: Any = None
    hf_processor_mm_kwargs: Mapping[str, object] = field(default_factory=dict)

    def get_mm_hashes(self, model_id, hash_algorithm):
        """An id of the caller counts alone if there are no options, as in vLLM."""
        options = dict(self.hf_processor_mm_kwargs)
        hashes = {}
        for modality, items in self.mm_data_items.items():
            ids = (self.mm_uuid_items or {}).get(modality) or [None] * len(items)
            hashes[modality] = [
                own
                if own is not None and not options
                else hashlib.sha256(repr((model_id, own or repr(item), options)).encode()).hexdigest()
                for item, own in zip(items, ids, strict=True)
            ]
        return hashes
