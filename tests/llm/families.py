"""A tiny random model of each model folder of transformers that takes precomputed features, and prompts for it.

Configs come from the defaults of the config class: sizes are reduced by the names of their fields, and `TUNED` has what
a family needs beyond that.
"""

from __future__ import annotations

import copy
import inspect
import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor
from torch.nn.functional import pad

from fewtokens.llm.interface import version
from tests.llm.tiny import IMAGE, PAD, VIDEO, ready

ROOT = Path(transformers.__file__).parent / "models"
TEXT_IDS = 160
_SIZES = {
    "vocab_size": 200, "hidden_size": 32, "d_model": 32, "intermediate_size": 64, "moe_intermediate_size": 16,
    "shared_expert_intermediate_size": 16, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
    "num_heads": 2, "head_dim": 8, "depth": 2, "num_experts": 4, "num_local_experts": 4, "n_routed_experts": 4,
    "num_experts_per_tok": 2, "max_position_embeddings": 512, "projector_hidden_size": 32, "projection_hidden_size": 32,
    "out_hidden_size": 32, "kv_lora_rank": 8, "q_lora_rank": 8, "linear_num_key_heads": 2, "linear_num_value_heads": 2,
    "linear_key_head_dim": 8, "linear_value_head_dim": 8, "encoder_attention_heads": 2, "encoder_layers": 1,
}  # fmt: skip
_VISION_SIZES = {
    "hidden_size": 16, "intermediate_size": 32, "num_attention_heads": 2, "num_key_value_heads": 2, "image_size": 24,
    "patch_size": 4, "out_hidden_size": 32, "embed_dim": 16, "projection_dim": 16, "num_position_embeddings": 64,
}  # fmt: skip
_MROPE = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [1, 1, 2]}


def _text(**values: Any) -> dict[str, Any]:
    return {"text_config": values}


def _vision(**values: Any) -> dict[str, Any]:
    return {"vision_config": values}


_QWEN3_VISION = _vision(deepstack_visual_indexes=[0, 1])
_LINEAR = {"num_hidden_layers": 4}

# What a config needs beyond reduced sizes.
TUNED: dict[str, dict[str, Any]] = {
    "aria": {"projector_patch_to_query_dict": {36: 9}},
    "cohere_compass": _text(
        layer_types=["sliding_attention", "full_attention"],
        rope_parameters={"sliding_attention": _MROPE, "full_attention": _MROPE},
    )
    | _QWEN3_VISION,
    "cosmos3_edge": _text(rope_parameters=_MROPE) | _vision(num_patches=64),
    "cosmos3_omni": _text(rope_parameters=_MROPE | {"mrope_interleaved": True}) | _QWEN3_VISION,
    "cohere2_vision": {"alignment_intermediate_size": 32},
    "ernie4_5_vl_moe": _text(moe_intermediate_size=[16, 16], moe_num_experts=4, moe_k=2, rope_parameters=_MROPE)
    | _vision(hidden_size=16),
    "gemma3": {"mm_tokens_per_image": 9},
    "gemma4": {
        "audio_config": None,
        "text_config": {
            "vocab_size_per_layer_input": 200,
            "hidden_size_per_layer_input": 4,
            "layer_types": ["sliding_attention", "full_attention"],
            "use_bidirectional_attention": "vision",
            "num_global_key_value_heads": 2,
            "global_head_dim": 8,
        },
        "vision_config": {"position_embedding_size": 64},
    },
    "gemma4_unified": {
        "audio_config": None,
        "text_config": {
            "layer_types": ["sliding_attention", "full_attention"],
            "use_bidirectional_attention": "vision",
            "num_global_key_value_heads": 2,
            "global_head_dim": 8,
        },
        "vision_config": {"mm_embed_dim": 16, "mm_posemb_size": 64, "output_proj_dims": 16},
    },
    "glm46v": _text(rope_parameters=_MROPE),
    "glm4v": _text(rope_parameters=_MROPE),
    "glm4v_moe": _text(rope_parameters=_MROPE, head_dim=16),
    "glm5_next": _text(
        **_LINEAR,
        num_key_value_heads=4,
        linear_num_heads=2,
        linear_head_dim=8,
        qk_nope_head_dim=8,
        v_head_dim=8,
        index_n_heads=2,
        index_head_dim=8,
        hc_mult=2,
    ),
    "glm_ocr": _text(rope_parameters=_MROPE | {"mrope_section": [2, 3, 3]}, head_dim=16),
    "kimi_k25": {
        "projection_hidden_size": 16,
        "text_config": {"num_key_value_heads": 4, "qk_rope_head_dim": 8, "qk_nope_head_dim": 8, "v_head_dim": 8},
    },
    "lfm3_vl": _text(layer_types=["conv", "full_attention"]),
    "llava_next": {"image_grid_pinpoints": [[24, 24], [24, 48], [48, 24]]},
    "llava_next_video": {"image_grid_pinpoints": [[24, 24], [24, 48], [48, 24]]},
    # An odd number of patches, so that rows share some, as in the released models.
    "llava_onevision": {"image_grid_pinpoints": [[24, 24], [24, 48], [48, 24]]} | _vision(patch_size=8),
    "minicpmv4_6": {"insert_layer_id": 1, "text_config": _LINEAR, "vision_config": {"insert_layer_id": 1}},
    "minicpmv4_7": {"insert_layer_id": 1, "text_config": _LINEAR, "vision_config": {"insert_layer_id": 1}},
    "minicpm_ocr": {"insert_layer_id": 1, "text_config": _LINEAR, "vision_config": {"insert_layer_id": 1}},
    "mistral_large4": _text(
        num_key_value_heads=4, qk_rope_head_dim=8, qk_nope_head_dim=8, v_head_dim=8, index_head_dim=8, index_n_heads=2
    ),
    "molmo2": {
        "vision_config": {"image_size": [24, 24], "num_position_embeddings": 36},
        "adapter_config": {"vision_feature_layer": [-1, -2], "hidden_size": 16, "text_hidden_size": 32},
    },
    "hy_v4_vl": {
        "text_config": {
            "num_key_value_heads": 4,
            "rope_parameters": _MROPE,
            "qk_rope_head_dim": 8,
            "qk_nope_head_dim": 8,
            "v_head_dim": 8,
            "index_head_dim": 8,
            "index_n_heads": 2,
            "hc_mult": 2,
        },
    },
    "muse_glimmer": {"out_hidden_size": 64}
    | _vision(pos_emb_height=4, pos_emb_width=4, layer_types=["window_attention", "full_attention"]),
    "nemotron_h_omni": {
        "audio_config": None,
        "vision_hidden_size": 16,
        "video_temporal_patch_size": 2,
        "vision_config": {"max_img_size": 64, "video_temporal_patch_size": 2},
        "text_config": {
            "layers_block_type": ["mamba", "full_attention", "moe", "mlp"],
            "mamba_num_heads": 4,
            "mamba_head_dim": 8,
            "ssm_state_size": 8,
            "n_groups": 2,
            "moe_shared_expert_intermediate_size": 16,
            "chunk_size": 16,
        },
    },
    "paddleocr_vl": _text(rope_parameters=_MROPE),
    "paligemma": _vision(projection_dim=32) | {"projection_dim": 32},
    "perception_lm": {"projector_pooling_ratio": 2, "vision_use_cls_token": False},
    "qwen2_5_omni": _text(rope_parameters=_MROPE) | {"vision_start_token_id": 180},
    "qwen2_5_vl": _text(rope_parameters=_MROPE),
    "qwen2_vl": _text(rope_parameters=_MROPE) | _vision(hidden_size=32),
    "qwen3_5": _text(**_LINEAR, rope_parameters=_MROPE),
    "qwen3_5_moe": _text(**_LINEAR, rope_parameters=_MROPE),
    "step3p7": _text(sliding_window=64),
    "qwen3_omni_moe": _text(rope_parameters=_MROPE | {"mrope_interleaved": True})
    | _QWEN3_VISION
    | {
        "vision_start_token_id": 180,
        "audio_config": {"downsample_hidden_size": 8, "encoder_ffn_dim": 16, "output_dim": 32},
    },
    "qwen3_vl": _text(rope_parameters=_MROPE | {"mrope_interleaved": True}) | _QWEN3_VISION,
    "qwen3_vl_moe": _text(rope_parameters=_MROPE | {"mrope_interleaved": True}) | _QWEN3_VISION,
    "qwen4_exp": _text(
        **_LINEAR,
        rope_parameters=_MROPE,
        hc_lowrank=8,
        ngram_vocab_size_base=64,
        ngram_size=2,
        heads_per_ngram=2,
        split_ngram_parts=2,
        make_ngram_vocab_size_divisible_by=8,
        indexer_n_heads=2,
        indexer_head_dim=8,
        indexer_kv_heads=1,
        indexer_budget=64,
        indexer_compress_ratio=2,
        ple_embed_dim=8,
        ple_layer_ids=[1],
    ),
    "vipllava": {"vision_feature_layer": [-1, -2]},
}

# Families that work from 5.23 on. In 5.19 gemma4 has another config and gemma4_unified other pixels, paddleocr_vl takes
# no features, and the models of the others fail by themselves: cosmos3_edge at its positions, vipllava at its layers.
NEWER = ("cosmos3_edge", "gemma4", "gemma4_unified", "paddleocr_vl", "vipllava")


WINDOW = 16
ALTERNATING = {
    "num_hidden_layers": 4,
    "sliding_window": WINDOW,
    "layer_types": ["sliding_attention", "full_attention"] * 2,
}
LINEAR = {"num_hidden_layers": 4, "layer_types": ["linear_attention", "full_attention"] * 2}
CONV = {"num_hidden_layers": 4, "layer_types": ["conv", "full_attention"] * 2}
BLOCKS = {"layers_block_type": ["mamba", "full_attention", "mamba", "full_attention", "moe"]}
# What the text config of `layered` has beyond three layers of full attention.
TEXT: dict[str, dict[str, Any]] = {
    **dict.fromkeys(
        ("aya_vision", "cohere2_vision", "cohere_compass", "exaone4_5", "gemma3", "gemma4", "gemma4_unified",
         "muse_glimmer", "step3p7"),
        ALTERNATING,
    ),
    "idefics2": {"sliding_window": WINDOW},
    "mistral3": {"sliding_window": WINDOW},
    **dict.fromkeys(("minicpm_ocr", "minicpmv4_6", "minicpmv4_7", "qwen3_5", "qwen3_5_moe"), LINEAR),
    **dict.fromkeys(("lfm2_vl", "lfm3_vl"), CONV),
    "nemotron_h_omni": BLOCKS,
}  # fmt: skip
# Families with layers that choose their keys by an index.
INDEXED = ("glm5_next", "hy_v4_vl", "minimax_m3_vl", "mistral_large4", "qwen4_exp")


@cache
def folders() -> tuple[str, ...]:
    """The model folders of the installed transformers whose modeling files have `mm_encoder_outputs`."""
    files = ROOT.glob("*/modeling_*.py")
    return tuple(sorted({file.parent.name for file in files if "mm_encoder_outputs" in file.read_text()}))


def model_class(folder: str) -> type | None:
    """The class with a language-model head that takes precomputed features."""
    for file in sorted((ROOT / folder).glob("modeling_*.py")):
        module = import_module(f"transformers.models.{folder}.{file.stem}")
        for name, kind in vars(module).items():
            has_head = name.endswith(("ForConditionalGeneration", "ForCausalLM", "_Reasoning_V3"))
            if not has_head or getattr(kind, "__module__", None) != module.__name__:
                continue
            if "mm_encoder_outputs" in inspect.signature(kind.forward).parameters:
                return kind
    return None


def config_of(kind: Any, tuned: dict[str, Any]) -> Any:
    """A config of few and narrow layers."""
    return kind(**_reduced(kind(), tuned, vision=False))


def _reduced(config: Any, tuned: dict[str, Any], *, vision: bool) -> dict[str, Any]:
    names = [name for base in type(config).__mro__ for name in getattr(base, "__annotations__", {})]
    sizes = _SIZES | (_VISION_SIZES if vision else {})
    given = vars(config)
    values = {name: size for name, size in sizes.items() if name in names and given.get(name) is not None}
    ids = {"image": IMAGE, "video": VIDEO}
    for name in dict.fromkeys(names):
        value = given.get(name)
        if isinstance(value, transformers.PreTrainedConfig):
            part = tuned.get(name, {})
            is_vision = vision or any(word in name for word in ("vision", "vit", "visual"))
            values[name] = part if part is None else type(value)(**_reduced(value, part, vision=is_vision))
        elif (
            isinstance(tuned.get(name), dict)
            and value is None
            and name in getattr(type(config), "sub_configs_defaults", {})
        ):
            part_class = type(config).sub_configs_defaults[name]
            part_class = getattr(part_class, "config_class", part_class)
            values[name] = part_class(**_reduced(part_class(), tuned[name], vision="vision" in name))
        stem, _, end = name.rpartition("_token_")
        if end in ("id", "index") or name == "image_patch_id":
            stem = "image" if name == "image_patch_id" else stem
            special = {"pad": PAD, "bos": 1, "eos": 199}.get(stem)
            values[name] = special if special is not None else ids.setdefault(stem, TEXT_IDS + len(ids))
    return values | {name: value for name, value in tuned.items() if not isinstance(value, dict) or name not in values}


@cache
def build(folder: str) -> Any:
    """A random model in float32; the same each time."""
    return make(folder, TUNED.get(folder, {}))


def make(folder: str, tuned: dict[str, Any]) -> Any:
    """As `build`, with what its config needs beyond reduced sizes, as in `TUNED`."""
    kind: Any = model_class(folder)
    assert kind is not None, f"{folder} has no class with a language-model head that takes features"
    torch.manual_seed(0)
    logging.getLogger("transformers").setLevel(logging.ERROR)
    # transformers changes the dicts of positions, which several families share.
    config = config_of(kind.config_class, copy.deepcopy(tuned))
    if folder == "perception_lm":  # its own encoder requires timm
        config.vision_config = transformers.SiglipVisionConfig(
            hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2, image_size=24,
            patch_size=4, vision_use_head=False, model_args={"embed_dim": 16},
        )  # fmt: skip
    model = kind(config)
    size = sum(parameter.numel() for parameter in model.parameters())
    assert size < 5e6, f"{folder}: {size} parameters are not tiny"
    # Random weights as large as trained ones, so that a wrong row changes the logits.
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim > 1:
                parameter.normal_(std=0.06)
            elif "newline" in name:
                parameter.normal_()
    return ready(model)


def layered(folder: str) -> Any:
    """As `build`, with layers of the kinds that the language model of the family has, or three of full attention."""
    tuned = copy.deepcopy(TUNED.get(folder, {}))
    if folder not in INDEXED:
        tuned["text_config"] = tuned.get("text_config", {}) | {"num_hidden_layers": 3} | TEXT.get(folder, {})
    elif folder == "minimax_m3_vl":
        tuned["text_config"] = {"layer_types": ["full_attention", "minimax_m3_sparse"]}
    if folder == "nemotron_h_omni":
        del tuned["text_config"]["num_hidden_layers"]
    return make(folder, tuned)


@dataclass
class Visual:
    """One image or video as the processor of a family passes it.

    Attributes:
        kind: "image" or "video".
        inputs: tensors by name, which a batch concatenates.
        runs: the number of placeholders between texts.
        shape: (T, H, W) of the cells.
        parts: the number of entries that `items` counts, see `compress`.
        group: the number of cells for each row that is not a cell, 0 if there are none.
        leading: whether such a row comes before its cells.
    """

    kind: str
    inputs: dict[str, Tensor]
    runs: list[int]
    shape: tuple[int, int, int]
    parts: int = 1
    group: int = 0
    leading: bool = False

    def __len__(self) -> int:
        return sum(self.runs)

    def others(self) -> Tensor:
        """The rows that are not cells."""
        index = torch.arange(len(self))
        return index[index % (self.group + 1) == (0 if self.leading else self.group)] if self.group else index[:0]

    def cells(self) -> Tensor:
        """The rows of the cells."""
        index = torch.arange(len(self))
        return index[~torch.isin(index, self.others())]


# Frames per step of the grid, where the config does not say.
SIDES = (2, 3)
INTERLEAVED = {
    "kimi_k25",
    "cohere_compass", "cosmos3_edge", "cosmos3_omni", "gemma4", "gemma4_unified", "glm46v", "glm4v", "glm4v_moe",
    "glm5_next", "glm_ocr", "idefics2", "idefics3", "internvl", "lfm3_vl", "minicpm_ocr", "minicpmv4_6",
    "minicpmv4_7", "minimax_m3_vl", "molmo2", "muse_glimmer", "muse_spark", "nemotron_h_omni", "paddleocr_vl",
    "qianfan_ocr", "qwen3_5", "qwen3_5_moe", "qwen3_omni_moe", "qwen3_vl", "qwen3_vl_moe", "qwen4_exp", "smolvlm",
    "video_llama_3"
}  # fmt: skip


def encoder(model: Any, modality: str) -> Callable[..., Any] | None:
    """The stock encoder of a modality."""
    base = model.base_model
    if modality == "video" and model.config.model_type == "perception_lm":
        return lambda pixel_values_videos, return_dict: base.get_image_features(pixel_values_videos)
    return getattr(base, f"get_{modality}_features", None)


def accepts(model: Any, modality: str) -> bool:
    return encoder(model, modality) is not None


def parameters(model: Any, modality: str) -> set[str]:
    function = encoder(model, modality)
    assert function is not None
    return set(inspect.signature(function).parameters)


def visual(folder: str, kind: str, steps: int, generator: torch.Generator) -> Visual:
    """An image, or a video of `steps` steps of the grid."""
    model = build(folder)
    modality = kind if accepts(model, "video") else "image"
    packed = f"{modality}_grid_thw" in parameters(model, modality)
    make = MAKERS.get(folder) or (_packed if packed else _frames)
    return make(folder, model, kind, steps, generator)


def _name(modality: str) -> str:
    return "pixel_values_videos" if modality == "video" else "pixel_values"


def _vision_value(model: Any, *names: str, default: Any = None) -> Any:
    for config in (model.config.vision_config, model.config):
        for name in names:
            if (value := getattr(config, name, None)) is not None:
                return value[0] if isinstance(value, list | tuple) else value
    return default


def _packed(folder: str, model: Any, kind: str, steps: int, generator: torch.Generator) -> Visual:
    """Patches of any number of frames, with their grid."""
    merge = _vision_value(model, "spatial_merge_size", "merge_size", "merge_kernel_size", default=2)
    patch = _vision_value(model, "patch_size")
    tubelet = _vision_value(model, "temporal_patch_size", "patch_temporal", default=1)
    times = PATCH_STEPS.get(folder, 1) if kind == "video" else 1
    H, W = SIDES
    modality = kind if accepts(model, "video") else "image"
    parts = 1 if modality == kind else steps
    grid = [steps * times // parts, H * merge, W * merge]
    values = torch.randn(parts * grid[0] * grid[1] * grid[2], 3 * tubelet * patch**2, generator=generator)
    values = values.unflatten(1, (3, patch, patch)) if folder in SQUARE_PATCHES else values
    inputs = {_name(modality): values, f"{modality}_grid_thw": torch.tensor([grid] * parts)}
    if f"{modality}_merge_sizes" in parameters(model, modality):
        inputs[f"{modality}_merge_sizes"] = torch.tensor([merge])
    if "second_per_grids" in parameters_of_positions(model) and kind == "video":
        inputs["video_second_per_grid"] = torch.tensor([1.0])
    if "second_per_grid_ts" in parameters_of_positions(model) and kind == "video":
        inputs["second_per_grid_ts"] = torch.tensor([1.0])
    runs = [H * W] * steps if folder in INTERLEAVED else [steps * H * W]
    if folder == "hy_v4_vl":  # a newline after each row of cells
        return Visual(kind, inputs, [steps * H * (W + 1)], (steps, H, W), parts, group=W)
    return Visual(kind, inputs, runs, (steps, H, W), parts)


def parameters_of_positions(model: Any) -> set[str]:
    function = getattr(model.base_model, "get_rope_index", None)
    return set() if function is None else set(inspect.signature(function).parameters)


@cache
def rows_of(folder: str, modality: str, steps: int) -> int:
    """The number of rows that the model's own encoder returns."""
    model = build(folder)
    encode = encoder(model, modality)
    inputs = _frame_inputs(folder, model, torch.ones(steps, 3, 24, 24), modality)
    with torch.no_grad():
        output = encode(**inputs, return_dict=True)
    return sum(rows.flatten(0, -2).shape[0] for rows in output.pooler_output)


def _frames(folder: str, model: Any, kind: str, steps: int, generator: torch.Generator) -> Visual:
    """Frames of one size; a video of a family without videos is as many images."""
    frames = torch.randn(steps, 3, 24, 24, generator=generator)
    own = kind == "video" and accepts(model, "video")
    rows = rows_of(folder, "video", steps) if own else steps * rows_of(folder, "image", 1)
    side = int((rows // steps) ** 0.5)
    shape = (steps, 1, rows // steps) if folder in LATENTS else (steps, side, side)
    group = {"llava_onevision": steps * side**2, "video_llava": side**2}.get(folder, 0)
    inputs = _frame_inputs(folder, model, frames, "video" if own else "image")
    runs = [rows // steps] * steps if folder in INTERLEAVED and kind == "video" else [rows]
    return Visual(kind, inputs, runs, shape, 1 if own else steps, group, leading=folder == "video_llava")


def _frame_inputs(folder: str, model: Any, frames: Tensor, modality: str) -> dict[str, Tensor]:
    if modality == "video":
        return {"pixel_values_videos": frames[None]}
    inputs = {"pixel_values": frames[None] if folder in ROWS_OF_IMAGES else frames}
    if folder == "perception_lm":
        return {"pixel_values": frames[:, None]}
    if hasattr(model.config, "image_grid_pinpoints"):  # a small image and a tile
        sizes = torch.tensor([list(frames.shape[-2:])] * len(frames))
        return {"pixel_values": frames[:, None].expand(-1, 2, -1, -1, -1), "image_sizes": sizes}
    function = model.base_model.get_image_features
    required = [p.name for p in inspect.signature(function).parameters.values() if p.default is p.empty]
    if "image_sizes" in required or folder in SIZED:
        inputs["image_sizes"] = torch.tensor([list(frames.shape[-2:])] * len(frames))
    return inputs


# Pixels are [prompts, images, ...].
ROWS_OF_IMAGES = {"idefics2", "idefics3", "smolvlm"}
# Patches are [n,3,side,side].
SQUARE_PATCHES = {"kimi_k25", "paddleocr_vl"}
# Rows are outputs of a resampler.
LATENTS = {"aria", "idefics2"}
SIZED = {"mistral3", "mistral_large4", "lighton_ocr"}
Maker = Callable[[str, Any, str, int, torch.Generator], Visual]


def _gemma4(folder: str, model: Any, kind: str, steps: int, generator: torch.Generator) -> Visual:
    """Frames of patches, with the place of each patch."""
    pooled = 1 if folder == "gemma4_unified" else model.config.vision_config.pooling_kernel_size
    values_of_patch = 3 * (12 if folder == "gemma4_unified" else 4) ** 2
    H, W = SIDES
    y, x = torch.meshgrid(torch.arange(H * pooled), torch.arange(W * pooled), indexing="ij")
    places = torch.stack([x, y], -1).reshape(1, -1, 2).expand(steps, -1, -1)
    values = torch.rand(steps, places.shape[1], values_of_patch, generator=generator)
    inputs = {_name(kind): values, f"{kind}_position_ids": places}
    if kind == "video":
        inputs["num_frames_per_video"] = torch.tensor([steps])
    return Visual(kind, inputs, [H * W] * steps, (steps, H, W))


def _molmo2(folder: str, model: Any, kind: str, steps: int, generator: torch.Generator) -> Visual:
    """Frames of patches, with the indices of the patches that are pooled for each row."""
    values = torch.randn(steps, 36, 3 * 4**2, generator=generator)
    patch = torch.arange(steps * 36).reshape(steps, 3, 2, 3, 2).permute(0, 1, 3, 2, 4).reshape(-1, 4)
    grid = [steps, 3, 3] if kind == "video" else [3, 3, 0, 0]
    inputs = {_name(kind): values, f"{kind}_token_pooling": patch, f"{kind}_grids": torch.tensor([grid])}
    return Visual(kind, inputs, [9] * steps, (steps, 3, 3))


def _nemotron(folder: str, model: Any, kind: str, steps: int, generator: torch.Generator) -> Visual:
    """Frames of one video, of which two become one step."""
    if kind == "image":
        values = torch.randn(36, 3 * 4**2, generator=generator)
        return Visual(kind, {"pixel_values": values, "image_grid_hw": torch.tensor([[6, 6]])}, [9], (1, 3, 3))
    frames = torch.randn(2 * steps, 3, 24, 24, generator=generator)
    if version() >= (5, 24):
        return Visual(kind, {"pixel_values_videos": frames.reshape(1, steps, 6, 24, 24)}, [9] * steps, (steps, 3, 3))
    return Visual(kind, {"pixel_values_videos": frames}, [9] * steps, (steps, 3, 3), parts=steps)


def _lfm2(folder: str, model: Any, kind: str, steps: int, generator: torch.Generator) -> Visual:
    """Images of patches, with their number of rows and columns."""
    H, W = SIDES
    values = torch.randn(steps, 4 * H * W, 3 * 4**2, generator=generator)
    mask = torch.ones(steps, 4 * H * W, dtype=torch.int64)
    inputs = {"pixel_values": values, "pixel_attention_mask": mask}
    inputs["spatial_shapes"] = torch.tensor([[2 * H, 2 * W]] * steps)
    return Visual(kind, inputs, [H * W] * steps, (steps, H, W), parts=steps)


def _kimi(folder: str, model: Any, kind: str, steps: int, generator: torch.Generator) -> Visual:
    """Chunks of two frames, whose rows are averages over the chunk; of one before transformers 5.24, which fails."""
    frames = 1 if kind == "image" or version() < (5, 24) else 2
    H, W = SIDES
    values = torch.randn(steps * frames * 4 * H * W, 3, 4, 4, generator=generator)
    inputs = {_name(kind): values, f"{kind}_grid_thw": torch.tensor([[frames, 2 * H, 2 * W]] * steps)}
    return Visual(kind, inputs, [H * W] * steps, (steps, H, W), parts=steps)


def _minicpm(folder: str, model: Any, kind: str, steps: int, generator: torch.Generator) -> Visual:
    """Patches of all frames in one row."""
    merge = 4 if model.config.downsample_mode == "16x" else 2
    H, W = SIDES
    values = torch.randn(1, 3, 4, steps * H * W * merge**2 * 4, generator=generator)
    sizes = torch.tensor([[H * merge, W * merge]] * steps)
    inputs = {_name(kind): values, f"target_sizes{'_videos' if kind == 'video' else ''}": sizes}
    return Visual(kind, inputs, [H * W] * steps, (steps, H, W), parts=steps)


MAKERS: dict[str, Maker] = {
    "gemma4": _gemma4, "gemma4_unified": _gemma4, "molmo2": _molmo2, "nemotron_h_omni": _nemotron,
    "lfm2_vl": _lfm2, "kimi_k25": _kimi, "minicpmv4_6": _minicpm, "minicpmv4_7": _minicpm, "minicpm_ocr": _minicpm,
}  # fmt: skip
# Steps of patches that become one step of the grid.
PATCH_STEPS = {"ernie4_5_vl_moe": 2}


@dataclass
class Prompt:
    """Inputs of a batch, the `items` of `compress`, and the visuals of each prompt."""

    inputs: dict[str, Any]
    items: list[list[tuple[str, int]]]
    visuals: list[Visual] = field(default_factory=list)


_TOKENS = ("input_ids", "attention_mask", "mm_token_type_ids", "token_type_ids", "moe_mm_token_type_ids", "labels")


def prompt(folder: str, *parts: Any, seed: int = 0) -> Prompt:
    """One prompt of ("text", tokens), ("image",) and ("video", steps of the grid) in this order."""
    model = build(folder)
    words, pixels = (torch.Generator().manual_seed(seed + shift) for shift in (0, 100))
    ids: list[int] = []
    types: list[int] = []
    inputs: dict[str, Any] = {}
    visuals = []

    def text(count: int) -> None:
        ids.extend(torch.randint(2, TEXT_IDS, (count,), generator=words).tolist())
        types.extend([0] * count)

    for kind, *size in parts:
        if kind == "text":
            text(size[0])
            continue
        part = visual(folder, kind, size[0] if size else 1, pixels)
        visuals.append(part)
        own = VIDEO if kind == "video" and accepts(model, "video") and folder not in SHARED else IMAGE
        names = [(f"{kind}_{end}_token_id", f"vision_{end}_token_id") for end in ("start", "end")]
        spans = [next(filter(None, (special(model, name) for name in pair)), None) for pair in names]
        for number, run in enumerate(part.runs):
            if number:
                text(1 + number % 2)
            if spans[0] is not None and not number:
                ids.append(spans[0])
                types.append(0)
            ids.extend([own] * run)
            types.extend([type_of(folder, kind, model)] * run)
        if spans[1] is not None:
            ids.append(spans[1])
            types.append(0)
        for name, value in part.inputs.items():
            inputs[name] = torch.cat([inputs[name], value], _axis(folder, name)) if name in inputs else value
    inputs["input_ids"] = torch.tensor([ids])
    inputs["attention_mask"] = torch.ones(1, len(ids), dtype=torch.int64)
    names = set(inspect.signature(model.forward).parameters) | parameters_of_positions(model)
    for name in ("mm_token_type_ids", "token_type_ids", "moe_mm_token_type_ids"):
        if name in names:
            inputs[name] = torch.tensor([types])
    return Prompt(inputs, [[(part.kind, part.parts) for part in visuals]], visuals)


# Families whose videos have the placeholder of images.
SHARED = {"molmo2", "glm4v", "glm46v", "glm4v_moe", "glm_ocr", "glm5_next", "nemotron_h_omni"}


def type_of(folder: str, kind: str, model: Any) -> int:
    """The token type of a row; in PaliGemma, of the whole prompt."""
    if folder == "paligemma":
        return 0
    return 2 if kind == "video" and accepts(model, "video") and folder != "molmo2" else 1


def _axis(folder: str, name: str) -> int:
    """The dimension along which the inputs of visuals are concatenated."""
    if name.startswith("pixel") and folder.startswith("minicpm"):
        return -1
    return 1 if folder in ROWS_OF_IMAGES else 0


def special(model: Any, name: str) -> int | None:
    return getattr(model.config, name, None)


def batch(folder: str, *prompts: Prompt, side: str = "left") -> Prompt:
    """A batch of prompts, padded on one side."""
    length = max(each.inputs["input_ids"].shape[1] for each in prompts)
    inputs: dict[str, Any] = {}
    for name in {name: 0 for each in prompts for name in each.inputs}:
        values = [each.inputs[name] for each in prompts if name in each.inputs]
        axis = 0
        if name in _TOKENS:
            space = [length - value.shape[1] for value in values]
            sizes = [(size, 0) if side == "left" else (0, size) for size in space]
            values = [
                pad(v, size, value=-100 if name == "labels" else 0) for v, size in zip(values, sizes, strict=True)
            ]
        elif folder in ROWS_OF_IMAGES:
            longest = max(value.shape[1] for value in values)
            values = [pad(v, (0, 0) * (v.ndim - 2) + (0, longest - v.shape[1])) for v in values]
        else:
            axis = _axis(folder, name)
        inputs[name] = torch.cat(values, axis)
    return Prompt(inputs, [row for each in prompts for row in each.items], [v for p in prompts for v in p.visuals])
