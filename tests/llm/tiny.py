"""Tiny random video language models of every family, and prompts for them as their processors would make them."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor

IMAGE, VIDEO, START, END, PAD = 190, 191, 192, 193, 0
TEXT = {
    "vocab_size": 200, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 2048, "pad_token_id": PAD, "bos_token_id": 1,
    "eos_token_id": 199,
}  # fmt: skip
MROPE = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [1, 1, 2]}
VISION = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2}
FAMILIES = (
    "llava_onevision", "llava_next_video", "qwen2_vl", "qwen2_5_vl", "qwen3_vl", "internvl", "smolvlm", "video_llama_3",
)  # fmt: skip
# Families with text between frames.
INTERLEAVED = ("qwen3_vl", "internvl", "smolvlm", "video_llama_3")
MROPE_FAMILIES = ("qwen2_vl", "qwen2_5_vl", "qwen3_vl")
# Frames per step of the grid.
TUBELET = {"qwen2_vl": 2, "qwen2_5_vl": 2, "qwen3_vl": 2}
SIDE = {"llava_onevision": 4, "llava_next_video": 3, "internvl": 3, "smolvlm": 3}
# Cells (rows, columns) of a frame, for families that accept any frame size.
SHAPE = (2, 3)

# The models that `tiny` has built.
MODELS: list[Any] = []


@cache
def tiny(family: str) -> Any:
    """A random model in float32; the same each time."""
    import transformers as hf

    torch.manual_seed(0)
    ids = {"image_token_id": IMAGE, "video_token_id": VIDEO}
    if family == "llava_onevision":
        vision = hf.SiglipVisionConfig(**VISION, image_size=28, patch_size=4, vision_use_head=False)
        config = hf.LlavaOnevisionConfig(
            vision_config=vision, text_config=hf.Qwen2Config(**TEXT), vision_feature_layer=-1, **ids,
            image_grid_pinpoints=[[28, 28], [28, 56], [56, 28]],
        )  # fmt: skip
        model: Any = hf.LlavaOnevisionForConditionalGeneration(config)
    elif family == "llava_next_video":
        vision = hf.CLIPVisionConfig(**VISION, image_size=24, patch_size=4, projection_dim=16)
        config = hf.LlavaNextVideoConfig(
            vision_config=vision, text_config=hf.LlamaConfig(**TEXT), vision_feature_layer=-2,
            image_token_id=IMAGE, video_token_id=VIDEO, image_token_index=IMAGE, video_token_index=VIDEO,
            image_grid_pinpoints=[[24, 24], [24, 48], [48, 24]],
        )  # fmt: skip
        model = hf.LlavaNextVideoForConditionalGeneration(config)
    elif family == "qwen2_vl":
        vision = {"depth": 2, "embed_dim": 16, "hidden_size": 32, "num_heads": 2, "mlp_ratio": 2, "patch_size": 4}
        text = TEXT | {"rope_parameters": dict(MROPE)}
        config = hf.Qwen2VLConfig(vision_config=vision, text_config=text, vision_start_token_id=START,
                                  vision_end_token_id=END, **ids)  # fmt: skip
        model = hf.Qwen2VLForConditionalGeneration(config)
    elif family == "qwen2_5_vl":
        vision = {
            "depth": 2, "hidden_size": 16, "intermediate_size": 32, "out_hidden_size": 32, "num_heads": 2,
            "patch_size": 4, "window_size": 16, "fullatt_block_indexes": [1], "tokens_per_second": 4,
        }  # fmt: skip
        text = TEXT | {"rope_parameters": dict(MROPE)}
        config = hf.Qwen2_5_VLConfig(vision_config=vision, text_config=text, vision_start_token_id=START,
                                     vision_end_token_id=END, **ids)  # fmt: skip
        model = hf.Qwen2_5_VLForConditionalGeneration(config)
    elif family == "qwen3_vl":
        vision = {
            "depth": 2, "hidden_size": 16, "intermediate_size": 32, "out_hidden_size": 32, "num_heads": 2,
            "patch_size": 4, "deepstack_visual_indexes": [0, 1], "num_position_embeddings": 16,
        }  # fmt: skip
        text = TEXT | {"head_dim": 8, "rope_parameters": MROPE | {"mrope_interleaved": True}}
        config = hf.Qwen3VLConfig(vision_config=vision, text_config=text, vision_start_token_id=START,
                                  vision_end_token_id=END, **ids)  # fmt: skip
        model = hf.Qwen3VLForConditionalGeneration(config)
    elif family == "internvl":
        vision = hf.InternVLVisionConfig(**VISION, image_size=[24, 24], patch_size=[4, 4])
        config = hf.InternVLConfig(vision_config=vision, text_config=hf.Qwen2Config(**TEXT), image_token_id=IMAGE)
        model = hf.InternVLForConditionalGeneration(config)
    elif family == "smolvlm":
        vision = hf.SmolVLMVisionConfig(**VISION, image_size=24, patch_size=4)
        config = hf.SmolVLMConfig(vision_config=vision, text_config=hf.LlamaConfig(**TEXT), image_token_id=IMAGE,
                                  scale_factor=2, pad_token_id=PAD)  # fmt: skip
        model = hf.SmolVLMForConditionalGeneration(config)
    else:
        vision = hf.VideoLlama3VisionConfig(**VISION, patch_size=4)
        config = hf.VideoLlama3Config(vision_config=vision, text_config=hf.Qwen2Config(**TEXT), **ids)
        model = hf.VideoLlama3ForConditionalGeneration(config)
    # Random weights as large as trained ones, so that a wrong row changes the logits.
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim > 1:
                parameter.mul_(3)
            elif "newline" in name:
                parameter.normal_()
    return ready(model)


def ready(model: Any) -> Any:
    """A tiny model that generates to the full length, and on which no test may leave a hook."""
    model.generation_config.pad_token_id = PAD
    model.generation_config.eos_token_id = None
    MODELS.append(model)
    return model.eval()


@dataclass
class Prompt:
    """Inputs of one prompt or a batch, and their `items` for `compress`."""

    inputs: dict[str, Any]
    items: list[list[tuple[str, int]]]


def grid_of(family: str, steps: int) -> tuple[int, int, int]:
    """(T, H, W) of the cells of a video of `steps` steps."""
    side = SIDE.get(family)
    return (steps, side, side) if side else (steps, *SHAPE)


def prompt(family: str, *parts: Any, seed: int = 0) -> Prompt:
    """One prompt of ("text", tokens), ("image",) and ("video", steps of the grid) in this order.

    The pixels of the visual parts do not depend on the text.
    """
    text_generator = torch.Generator().manual_seed(seed)
    pixels = torch.Generator().manual_seed(seed + 100)
    ids: list[int] = []
    videos: list[Tensor] = []
    images: list[Tensor] = []
    frame_images: list[Tensor] = []
    grids: dict[str, list[list[int]]] = {"image": [], "video": []}
    items: list[tuple[str, int]] = []

    def add_text(count: int) -> None:
        ids.extend(torch.randint(2, 180, (count,), generator=text_generator).tolist())

    for kind, *size in parts:
        if kind == "text":
            add_text(size[0])
            continue
        steps = size[0] if kind == "video" else 1
        T, H, W = grid_of(family, steps)
        items.append((kind, steps))
        token = VIDEO if kind == "video" and family not in ("internvl", "smolvlm") else IMAGE
        if family in SIDE:
            height = 28 if family == "llava_onevision" else 24
            frames = torch.randn(T, 3, height, height, generator=pixels)
            if family in ("internvl", "smolvlm"):
                frame_images.extend(frames)
                for number in range(T):
                    if kind == "video":
                        add_text(1 + number % 2)
                    ids.extend([START, *[IMAGE] * (H * W), END])
            elif kind == "video":
                videos.append(frames)
                ids.extend([VIDEO] * (T * H * W + (family == "llava_onevision")))
            else:
                images.append(frames.expand(2, -1, -1, -1))  # a base image and one tile
                ids.append(-1)  # their number comes from the model, below
        else:
            tubelet = TUBELET.get(family, 1)
            merge = 2
            rows = torch.randn(T * H * W * merge**2, 3 * tubelet * 16, generator=pixels)
            (videos if kind == "video" else images).append(rows)
            grids[kind].append([T, H * merge, W * merge])
            if family in INTERLEAVED and kind == "video":
                for number in range(T):
                    add_text(1 + number % 2)
                    ids.extend([START, *[token] * (H * W), END])
            else:
                ids.extend([START, *[token] * (T * H * W), END])
    inputs: dict[str, Any] = {}
    if family in ("llava_onevision", "llava_next_video"):
        if videos:
            inputs["pixel_values_videos"] = _stack(videos)
        if images:
            inputs["pixel_values"] = torch.stack(images)
            side = images[0].shape[-1]
            inputs["image_sizes"] = torch.tensor([[side, side]] * len(images))
            with torch.no_grad():
                features = tiny(family).base_model.get_image_features(
                    inputs["pixel_values"], inputs["image_sizes"], return_dict=True
                )
            row_counts = iter([len(rows) for rows in features.pooler_output])
            ids = [i for id in ids for i in ([IMAGE] * next(row_counts) if id == -1 else [id])]
    elif frame_images:
        stacked = torch.stack(frame_images)
        inputs["pixel_values"] = stacked[None] if family == "smolvlm" else stacked
    else:
        for kind, rows, name in (("image", images, "pixel_values"), ("video", videos, "pixel_values_videos")):
            if rows:
                inputs[name] = torch.cat(rows)
                inputs[f"{kind}_grid_thw"] = torch.tensor(grids[kind])
                if family == "video_llama_3":
                    inputs[f"{kind}_merge_sizes"] = torch.tensor([2] * len(rows))
        if family == "qwen2_5_vl" and videos:
            inputs["second_per_grid_ts"] = torch.tensor([1.0] * len(videos))
    inputs["input_ids"] = torch.tensor([ids])
    inputs["attention_mask"] = torch.ones(1, len(ids), dtype=torch.int64)
    if family in MROPE_FAMILIES:
        inputs["mm_token_type_ids"] = token_types(inputs["input_ids"])
    return Prompt(inputs, [items])


def token_types(ids: Tensor) -> Tensor:
    return (ids == IMAGE).long() + 2 * (ids == VIDEO).long()


def _stack(videos: list[Tensor]) -> Tensor:
    return torch.stack(videos)


def batch(family: str, *prompts: Prompt) -> Prompt:
    """A batch of prompts, padded on the left."""
    length = max(each.inputs["input_ids"].shape[1] for each in prompts)
    inputs: dict[str, Any] = {}
    for name in prompts[0].inputs | {k: 0 for each in prompts for k in each.inputs}:
        values = [each.inputs[name] for each in prompts if name in each.inputs]
        if name in ("input_ids", "attention_mask", "mm_token_type_ids", "labels"):
            fill = -100 if name == "labels" else 0
            values = [torch.nn.functional.pad(v, (length - v.shape[1], 0), value=fill) for v in values]
        elif name == "pixel_values" and family == "smolvlm":
            longest = max(v.shape[1] for v in values)
            values = [torch.nn.functional.pad(v, (0, 0, 0, 0, 0, 0, 0, longest - v.shape[1])) for v in values]
        inputs[name] = torch.cat(values)
    return Prompt(inputs, [row for each in prompts for row in each.items])
