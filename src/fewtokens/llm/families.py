"""The families of transformers that take features made ahead, and which of them work with `Backend`.

Each model folder of transformers with this interface is listed; tests/llm/test_families.py builds a tiny model of each
and checks the table.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Family:
    """A family of models.

    Attributes:
        name: the `model_type`.
        works: whether `attach` and `compress` work with its models.
        reason: why not; or what to know.
        folder: the folder of transformers, if it has another name.
    """

    name: str
    works: bool = True
    reason: str = ""
    folder: str = ""


_WORKING = (
    "aria", "aya_vision", "cohere_compass", "cosmos3_edge", "cosmos3_omni", "deepseek_vl", "exaone4_5", "gemma3",
    "glm46v", "glm4v", "glm4v_moe", "got_ocr2", "hyperclovax_vision_v2", "idefics2", "idefics3", "internvl", "lfm3_vl",
    "lighton_ocr", "llava", "llava_next_video", "llava_onevision", "minimax_m3_vl", "mistral3", "ovis2", "paligemma",
    "qianfan_ocr", "qwen2_5_vl", "qwen2_vl", "qwen3_5", "qwen3_5_moe", "qwen3_vl", "qwen3_vl_moe", "smolvlm",
    "video_llama_3", "video_llava", "vipllava",
)  # fmt: skip
FAMILIES = tuple(Family(name, folder=name) for name in _WORKING)
