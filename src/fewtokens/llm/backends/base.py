"""What differs between families of video language models: `Backend`, and a subclass for each family that needs one.

All families are used the same way. The base model's `get_image_features` and `get_video_features` encode, and
`mm_encoder_outputs=` of `forward` and `generate` takes the features back (transformers 5.19 or newer); nothing is
patched. `Backend` asks the model for the rest: placeholders, positions, and which rows are the cells of a video. So it
serves any model with this interface; a file in this folder is needed for a family that differs, and for `Processor`.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection, Sequence
from contextlib import AbstractContextManager
from importlib import import_module
from pkgutil import iter_modules
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from fewtokens.core.attention_rule import AttentionRule
from fewtokens.core.cell_pixels import cell_pixels, packed_pixels, to_unit_pixels
from fewtokens.core.grid import Grid
from fewtokens.core.method import Method
from fewtokens.llm import backends
from fewtokens.llm.backends.rows import (
    RowLayout,
    Shape,
    VisualFeatures,
    join_layouts,
    row_layout,
    split_grids,
    tiled_layout,
)
from fewtokens.llm.families import FAMILIES
from fewtokens.llm.interface import CACHE_NAMES, attribute, cache_name, unsupported, unwrap, version
from fewtokens.llm.pixels import PreparedVideo
from fewtokens.llm.tower import check_attention, record_cues, tower_of
from fewtokens.video import Video

MODALITIES = ("image", "video")
_SHARED = ("base", "rows")
# The model_type of a config is the name of its module, which is imported when first needed.
BACKENDS = tuple(sorted(module.name for module in iter_modules(backends.__path__) if module.name not in _SHARED))
"""The `model_type` of each family with a separate file; others use `Backend`."""
CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
HALF = (0.5, 0.5, 0.5)
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
# Families that the file of another one serves.
_SAME = {
    "hyperclovax_vision_v2": "exaone4_5",
    "minicpm_ocr": "minicpmv4_6",
    "minicpmv4_7": "minicpmv4_6",
    "qwen3_5": "qwen3_vl",
    "qwen3_5_moe": "qwen3_vl",
    "qwen3_omni_moe_thinker": "qwen2_5_omni_thinker",
    "qwen3_vl_moe": "qwen3_vl",
    "qwen4_exp": "qwen3_vl",
}
# What forward does not read of an encoder's output; it would only occupy memory.
_UNUSED_OUTPUTS = ("last_hidden_state", "hidden_states", "attentions", "pooler_output", "deepstack_features")
_CONSUMERS = ("image_features", "video_features", "rope_index")
_NOT_CONSUMED = ("kwargs", "input_ids", "attention_mask", "position_ids", "inputs_embeds", *CACHE_NAMES)
# Names of the number of patches merged along each side, in configs.
_MERGE_NAMES = ("spatial_merge_size", "merge_size", "merge_kernel_size")
# Families whose processors pack patches as that of Qwen2-VL, by the mean and deviation of their pixels.
_PACKED = {
    (HALF, HALF): ("cohere_compass", "cosmos3_omni", "qwen3_5", "qwen3_5_moe", "qwen3_vl_moe", "qwen4_exp"),
    (CLIP_MEAN, CLIP_STD): (
        "exaone4_5", "glm46v", "glm4v", "glm4v_moe", "glm5_next", "glm_ocr", "hyperclovax_vision_v2", "minimax_m3_vl",
        "qwen2_5_omni_thinker", "qwen3_omni_moe_thinker",
    ),
}  # fmt: skip
OWN_PROCESSOR = (
    "make prompts with the processor of transformers (AutoProcessor) and pass them to attach or compress_inputs"
)


class Backend:
    """A family of video language models; this class serves any that has the interface.

    Args:
        name: the `model_type`; default: that of the class.

    Class attributes:
        name: the `model_type` for which the class was written.
        needs_items: videos are images in a row, so the prompt alone does not distinguish them; None to find out.
        video_parts: the encoder returns a video in parts (frames or chunks), which `items` or the prompt group.
        video_spans: videos have the placeholder of images, between a start and an end token.
        counted: `generate` discards positions and counts the columns.
        latents: rows are outputs of a resampler, which have no place in the image.
        leading: the row of a frame that is not a cell comes before its cells.
        any_size: frames may have any size, and a prompt videos of several sizes, see `llm/frame_sizes.py`.
        raster: the patches of a packed frame are in raster order; otherwise those of a cell are together.
        nested_images: pixels of images are [prompts, images, ...].
        listed: modalities of which `forward` takes a list although the encoder returns a tensor.
        pixel_inputs: names of the inputs that the encoder reads, by modality.
        cues: the cues that the family can provide in addition to those of its vision tower.
        mean, std: of the normalized pixels; used for the cue `pixels`, and if a model's folder does not specify them.
        preprocess_config: values of the video processor that a folder may not specify; the defaults of transformers.
        video_marker: the text for a video in the chat template; None if it is the placeholder itself.
        template: the chat template for videos, if it is not the folder's.
        unsupported_versions: releases of transformers (major, minor) in which the family requires all rows of an image.
    """

    name: str = ""
    needs_items: bool | None = None
    video_parts: ClassVar[bool] = False
    video_spans: ClassVar[bool] = False
    counted: ClassVar[bool] = False
    latents: ClassVar[bool] = False
    leading: ClassVar[bool] = False
    any_size: ClassVar[bool] = False
    raster: ClassVar[bool] = False
    nested_images: ClassVar[bool] = False
    listed: ClassVar[tuple[str, ...]] = ()
    pixel_inputs: ClassVar[dict[str, tuple[str, ...]]] = {
        "image": ("pixel_values", "pixel_values_images", "image_patches"),
        "video": ("pixel_values_videos",),
    }
    cues: ClassVar[tuple[str, ...]] = ("text", "frame_global")
    mean: ClassVar[Sequence[float]] = HALF
    std: ClassVar[Sequence[float]] = HALF
    preprocess_config: ClassVar[dict[str, Any]] = {}
    video_marker: ClassVar[str | None] = None
    template: ClassVar[str | None] = None
    unsupported_versions: ClassVar[tuple[tuple[int, int], ...]] = ()

    def __init__(self, name: str = "") -> None:
        self.name = name or self.name

    def defaults(self, config: Any) -> dict[str, Any]:
        """The preprocessing of a model with this config, for what its folder does not specify."""
        return {"resample": 3, "image_mean": self.mean, "image_std": self.std} | self.preprocess_config

    def prepare(self, model: Any, processor: Any, video: Video) -> PreparedVideo:
        """Returns the frames as the model takes them, and the text that represents them in a prompt.

        Args:
            model: a model with its language-model head.
            processor: the `Processor`, for its preprocess_config and the special tokens of its tokenizer.
            video: frames uint8 [T,3,H,W] with their times.

        Raises:
            ValueError: the family has no preprocessing here.
        """
        raise ValueError(f"{self.name} has no preprocessing here; {OWN_PROCESSOR}")

    def prepare_at(self, model: Any, processor: Any, video: Video, size: tuple[int, int] | None) -> PreparedVideo:
        """As `prepare`, with frames of the height and width `size`, a result of `frame_size`."""
        return self.prepare(model, processor, video)

    def frame_size(self, model: Any, processor: Any, video: Video) -> tuple[int, int] | None:
        """The height and width to which the frames of a video are resized, if they depend on the video."""
        return None

    def cell_side(self, model: Any, processor: Any) -> int:
        """The side of a cell in pixels, in a family with `any_size`."""
        raise NotImplementedError

    def between_runs(self, processor: Any) -> str:
        """The text between two videos that are parts of one, in a family with `any_size`."""
        return ""

    def tubelet(self, model: Any) -> int:
        """The number of frames in a step of the grid."""
        return 1

    def describe(self, model: Any, processor: Any, video: Video, grid: Grid) -> PreparedVideo:
        """Returns what `prepare` returns, without pixels, for a video of which only the cells exist.

        Args:
            model: a model with its language-model head.
            processor: the `Processor`.
            video: the video, of which only the number of frames, their times and the duration are read.
            grid: its cells, T * `tubelet` frames.

        Raises:
            ValueError: the family has no preprocessing here.
        """
        raise ValueError(f"{self.name} cannot describe a video by its cells; implement Backend.describe")

    def prepare_images(self, model: Any, processor: Any, images: Sequence[Video]) -> list[PreparedVideo]:
        """As `prepare`, for the images of one prompt, each a video of one frame.

        Raises:
            ValueError: the family has no preprocessing of images here.
        """
        raise ValueError(f"{self.name} takes no images here; {OWN_PROCESSOR}")

    def prepare_tiled_images(
        self, model: Any, processor: Any, images: Sequence[Video], *, nested: bool = False
    ) -> list[PreparedVideo]:
        """As `prepare_images`, for images of any resolution in tiles (LLaVA-NeXT and later).

        Args:
            nested: whether the image processor takes the images of each prompt as a list.
        """
        inputs = processor.image_inputs(images, nested=nested)
        prepared = []
        for index, (tiled, alone) in enumerate(self.tilings(model, inputs)):
            rows = len(alone if nested and len(images) > 1 else tiled)
            own = {name: inputs[name][index : index + 1] for name in ("pixel_values", "image_sizes")}
            prepared.append(PreparedVideo(own, processor.markers["image"] * rows))
        if nested:
            prepared[0].inputs["batch_num_images"] = torch.tensor([len(images)])
        return prepared

    @property
    def has_prompts(self) -> bool:
        """Whether `Processor` and `Session` can make prompts for the family."""
        return type(self).prepare is not Backend.prepare

    @property
    def has_images(self) -> bool:
        """Whether `Processor` and `Session` can make prompts with images for the family."""
        return type(self).prepare_images is not Backend.prepare_images

    def encode(self, model: Any, modality: str, inputs: dict[str, Any]) -> Any:
        """Encodes the pixels of a modality.

        Raises:
            ValueError: the model has no encoder for it, or takes its pixels under another name.
        """
        encode = getattr(model.base_model, f"get_{modality}_features", None)
        parameters = {} if encode is None else inspect.signature(encode).parameters
        arguments = {name: value for name, value in inputs.items() if name in parameters and value is not None}
        names = self.pixel_inputs[modality]
        if encode is None or not any(name in arguments for name in names):
            raise ValueError(
                f"{self.name} does not accept {' or '.join(names)}; were the inputs prepared for another model?"
            )
        return encode(**arguments, return_dict=True)

    def available_cues(self, model: Any) -> tuple[str, ...]:
        """Names of the cues that a model can provide, keys of `CUES`."""
        # The rows of a resampler are not those of patches.
        tower = None if self.latents else tower_of(model)
        return self.cues if tower is None else (*self.cues, *tower.cues)

    def check_attention(self, model: Any, method: Method) -> None:
        """Checks that the vision tower has the attention that a method reads, see `fewtokens.llm.tower`."""
        check_attention(model, self.name, method)

    def recording(
        self, model: Any, modality: str, inputs: dict[str, Any], needs: Collection[str], rule: AttentionRule
    ) -> AbstractContextManager[Callable[[Sequence[VisualFeatures]], None]]:
        """Records cues of the vision tower while `encode` runs inside the block, see `record_cues`."""
        return record_cues(model, modality, inputs, needs, rule, raster=self.raster)

    def consumed(self, model: Any) -> set[str]:
        """The names of inputs that describe pixels or original positions, which features and new positions replace."""
        functions = [getattr(model.base_model, f"get_{name}", None) for name in _CONSUMERS]
        names = {name for f in functions if f is not None for name in inspect.signature(f).parameters}
        return names - set(_NOT_CONSUMED)

    def placeholders(self, model: Any, modality: str) -> tuple[int, ...]:
        """The token ids that may stand for a row of features in the prompt, the most likely first."""
        names = [f"{each}_token_{end}" for each in dict.fromkeys((modality, "image")) for end in ("id", "index")]
        ids = [getattr(model.config, name, None) for name in (*names, "image_patch_id")]
        return tuple(dict.fromkeys(id for id in ids if isinstance(id, int)))

    def locate(self, model: Any, modality: str, prompt: dict[str, Any], rows: int) -> tuple[int, Tensor]:
        """Returns the placeholder of a modality, and its rows and columns in the prompts [B,L], int64 [rows,2].

        Raises:
            ValueError: no placeholder occurs as often as there are rows.
        """
        ids = prompt["input_ids"]
        found = []
        for placeholder in self.placeholders(model, modality):
            matches = ids == placeholder
            if self.video_spans and modality in ("image", "video"):
                inside = _between(ids, model.config.video_start_token_id, model.config.video_end_token_id)
                matches &= inside if modality == "video" else ~inside
            found.append(int(matches.sum()))
            if found[-1] == rows:
                return placeholder, matches.nonzero()
        has_both = all(any(prompt.get(name) is not None for name in self.pixel_inputs[m]) for m in MODALITIES)
        if has_both and found[0] > rows and not any((ids == id).any() for id in self._video_only(model)):
            raise ValueError(
                f"{self.name} has one placeholder for images and videos, and transformers does not accept both in one "
                "batch of prompts; split them"
            )
        raise ValueError(
            f"the prompt has {next(filter(None, found), 0)} placeholders for {modality} features, the encoder returned "
            f"{rows}; was the prompt made by the processor of this model?"
        )

    def _video_only(self, model: Any) -> set[int]:
        return set(self.placeholders(model, "video")) - set(self.placeholders(model, "image"))

    def entries(self, model: Any, outputs: Any) -> list[Tensor]:
        """The rows [n,D] of each image, video or part of a video, in the order of the prompt."""
        entries = [rows.flatten(0, -2) for rows in attribute(outputs, "pooler_output")]
        # Idefics3 and SmolVLM return the images of a prompt as one.
        size = getattr(model.base_model, "image_seq_len", None)
        if not size or any(len(rows) % size for rows in entries):
            return entries
        return [image for rows in entries for image in rows.split(size)]

    def shapes(self, model: Any, modality: str, inputs: dict[str, Any], count: int) -> Sequence[Shape] | None:
        """(frames, height, width) of each of `count` entries, in patches or pixels; None if unknown."""
        for name in (f"{modality}_grid_thw", f"{modality}_grids", f"{modality}_grid_hw", "spatial_shapes"):
            grids = inputs.get(name)
            if grids is not None and grids.shape[1] in (2, 3):
                return [(1, *grid)[-3:] for grid in grids.tolist()]
        pixels = next((inputs[name] for name in self.pixel_inputs[modality] if inputs.get(name) is not None), None)
        if modality == "image" and (sizes := inputs.get("image_sizes")) is not None:
            return [(1, *size) for size in sizes.tolist()]
        if pixels is None or pixels.ndim < 4:
            return None
        frames = pixels.shape[1] if modality == "video" and pixels.ndim == 5 and len(pixels) == count else 1
        return [(frames, *pixels.shape[-2:])] * count

    def merges(self, model: Any, modality: str, inputs: dict[str, Any], count: int) -> Sequence[int | None]:
        """The number of patches of each of `count` entries that are merged along each side; None if unknown."""
        if inputs.get(f"{modality}_merge_sizes") is not None:
            return inputs[f"{modality}_merge_sizes"].tolist()
        if inputs.get(f"{modality}_grid_thw") is None:
            return [None] * count
        configs = (getattr(model.config, "vision_config", None), model.config)
        values = [getattr(config, name, None) for name in _MERGE_NAMES for config in configs]
        merge = next((value for value in values if value is not None), None)
        return [merge[0] if isinstance(merge, list | tuple) else merge] * count

    def layouts(
        self, model: Any, modality: str, inputs: dict[str, Any], entries: Sequence[Tensor]
    ) -> Sequence[RowLayout | None]:
        """Which rows of each entry are cells; None where they form no grid."""
        if self.latents:
            return [RowLayout(Grid(1, 1, len(rows))) for rows in entries]
        if modality == "image" and hasattr(model.config, "image_grid_pinpoints"):
            return self.tiled_layouts(model, inputs, entries)
        shapes = self.shapes(model, modality, inputs, len(entries))
        if shapes is None or len(shapes) != len(entries):
            return [None] * len(entries)
        merges = self.merges(model, modality, inputs, len(entries))
        return [
            row_layout(len(rows), shape, merge, leading=self.leading)
            for rows, shape, merge in zip(entries, shapes, merges, strict=True)
        ]

    def tiled_layouts(
        self, model: Any, inputs: dict[str, Any], entries: Sequence[Tensor]
    ) -> Sequence[RowLayout | None]:
        """As `layouts`, for images of any resolution in tiles (LLaVA-NeXT and later)."""
        pairs = zip(entries, self.tilings(model, inputs), strict=True)
        return [next((layout for layout in tilings if len(layout) == len(rows)), None) for rows, tilings in pairs]

    def tilings(self, model: Any, inputs: dict[str, Any]) -> list[tuple[RowLayout, RowLayout]]:
        """The layouts that each image in tiles may have: with its tiles, and without, as one of several in a prompt."""
        config, vision = model.config, model.config.vision_config
        side = vision.image_size // vision.patch_size
        ratio = inputs.get("vision_aspect_ratio") or getattr(config, "vision_aspect_ratio", None)
        limit = None if ratio is None else int(ratio.removeprefix("anyres_max_"))
        alone = RowLayout(Grid(1, side, side), group=side**2)
        return [
            (tiled_layout(size, config.image_grid_pinpoints, vision.image_size, side, limit), alone)
            for size in inputs["image_sizes"].tolist()
        ]

    def deepstack(self, outputs: Any, entries: Sequence[Tensor]) -> list[list[Tensor]]:
        """Additional rows for early layers of the language model, by entry and layer."""
        layers = outputs.get("deepstack_features") or ()
        lengths = [len(rows) for rows in entries]
        by_layer = [torch.cat([rows.flatten(0, -2) for rows in layer]).split(lengths) for layer in layers]
        return [list(rows) for rows in zip(*by_layer, strict=True)] if by_layer else [[] for _ in entries]

    def visuals(
        self,
        model: nn.Module,
        modality: str,
        outputs: Any,
        inputs: dict[str, Any],
        groups: Sequence[tuple[str, int]],
        pixels: Collection[str] = (),
    ) -> list[VisualFeatures]:
        """Returns the images or videos of one modality, in the order of the prompt; each grid of an image on its own.

        Args:
            model: a model with its language-model head.
            modality: "image" or "video".
            outputs: the output of the encoder.
            inputs: the prompt, as the processor returns it.
            groups: ("video" or "image", its number of entries), in order.
            pixels: the kinds, "image" or "video", of which the pixels of each cell are returned too.

        Raises:
            ValueError: the rows of a video form no grid.
        """
        entries = self.entries(model, outputs)
        layouts = self.layouts(model, modality, inputs, entries)
        deepstack = self.deepstack(outputs, entries)
        visuals, at = [], 0
        for kind, count in groups:
            own = slice(at, at + count)
            rows = torch.cat(entries[own])
            layout = join_layouts(layouts[own])
            if kind == "video" and layout is None:
                shapes = self.shapes(model, modality, inputs, len(entries))
                raise ValueError(
                    f"{self.name}: {len(rows)} rows of a video in {count} parts do not form frames of equal size"
                    + ("" if shapes is None else f"; its shape is {' + '.join(map(str, map(tuple, shapes[own])))}")
                )
            layers = [torch.cat(layer) for layer in zip(*deepstack[own], strict=True)]
            visual = VisualFeatures(kind, rows, layout, layers)
            grids = split_grids(visual)
            if kind in pixels and layout is not None and len(grids) == 1:
                visual.pixels = self.pixels(model, modality, inputs, own, layout)
            visuals += grids
            at += count
        return visuals

    def pixels(self, model: Any, modality: str, inputs: dict[str, Any], entries: slice, layout: RowLayout) -> Tensor:
        """The cue `pixels` of an image or a video that consists of some of the entries."""
        frames = next(inputs[name] for name in self.pixel_inputs[modality] if inputs.get(name) is not None)
        if (grids := inputs.get(f"{modality}_grid_thw")) is not None:
            counts = grids.prod(1)
            start, stop = (int(counts[:end].sum()) for end in (entries.start, entries.stop))
            side = attribute(model.config.vision_config, "patch_size")
            return packed_pixels(frames[start:stop], layout.grid.cells, side, self.mean, self.std)
        frames = frames[entries].flatten(0, -4) if frames.ndim == 5 else frames[entries]
        if modality == "image" and (sizes := inputs.get("image_sizes")) is not None:
            height, width = sizes[entries][0].tolist()  # images of different sizes are padded
            frames = frames[..., :height, :width]
        return cell_pixels(to_unit_pixels(frames, self.mean, self.std), layout.grid)

    def pack(self, modality: str, outputs: Any, visuals: Sequence[VisualFeatures]) -> Any:
        """Returns the encoder's output with its rows replaced by those of `visuals`."""
        rows = [visual.features for visual in visuals]
        stacked = isinstance(outputs.pooler_output, Tensor) and modality not in self.listed
        packed = type(outputs)(**{name: value for name, value in outputs.items() if name not in _UNUSED_OUTPUTS})
        packed["pooler_output"] = torch.cat(rows)[:, None] if stacked else rows
        if any(visual.deepstack for visual in visuals):
            packed["deepstack_features"] = [list(layer) for layer in zip(*(v.deepstack for v in visuals), strict=True)]
        return packed

    def output_name(self, model: Any, modality: str, placeholder: int) -> str:
        """The key of a modality's features in `mm_encoder_outputs`.

        Videos with the placeholder of images are passed as images, because `generate` counts placeholders by the key
        for beams and for `prefill_chunk_size`.
        """
        shared = placeholder in self.placeholders(model, "image")[:1] and not self.video_spans
        return "image" if shared else modality

    def axes(self, model: Any) -> int:
        """The number of axes of positions, 1 if they are a count; more if the model has a `get_rope_index`."""
        rope_index = getattr(model.base_model, "get_rope_index", None)
        if rope_index is None:
            return 1
        ids = torch.zeros(1, 1, dtype=torch.int64, device=model.device)
        inputs = {"input_ids": ids, "mm_token_type_ids": ids, "attention_mask": torch.ones_like(ids)}
        return len(rope_index(**rope_inputs(rope_index, inputs))[0])

    def original_positions(self, model: Any, prompt: dict[str, Any], mask: Tensor) -> Tensor:
        """Positions of the columns of prompts [B,L] before they are shortened, int64 [A,B,L] of A axes."""
        ids, base = prompt["input_ids"], model.base_model
        if not hasattr(base, "get_rope_index"):
            return (mask.long().cumsum(1) - 1).clamp(min=0)[None]
        token_types = prompt.get("mm_token_type_ids")
        if token_types is None:
            token_types = self._token_types(model, prompt)
        inputs = prompt | {"input_ids": ids, "mm_token_type_ids": token_types, "attention_mask": mask}
        return base.get_rope_index(**rope_inputs(base.get_rope_index, inputs))[0]

    def _token_types(self, model: Any, prompt: dict[str, Any]) -> Tensor:
        """The kind of each column by its placeholder, int64 [B,L]: 0 for text, then as in `MODALITIES`.

        Raises:
            ValueError: placeholders do not tell images and videos apart.
        """
        ids = prompt["input_ids"]
        types = torch.zeros_like(ids)
        for token_type, modality in enumerate(MODALITIES, start=1):
            columns = ids == self.placeholders(model, modality)[0]
            given = any(prompt.get(name) is not None for name in self.pixel_inputs[modality])
            if given and (not bool(columns.any()) or bool(types[columns].any())):
                raise ValueError(f"{self.name}: pass mm_token_type_ids, which its processor returns")
            types = torch.where(columns & (types == 0), token_type, types)
        return types

    def default_positions(self, model: Any) -> str:
        """The default for `positions`, see `compress`."""
        return "average" if hasattr(model.base_model, "get_rope_index") else "renumber"

    def default_methods(self, model: Any) -> Any:
        """The default methods: a chain or a pipeline."""
        return ""

    def context_length(self, model: Any) -> int | None:
        """The maximum number of positions; None for no limit."""
        return attribute(model.config.get_text_config(), "max_position_embeddings")

    def causal_lm(self, model: Any) -> Any:
        """The module that `generate` calls for each new token."""
        return model

    def input_features(self, model: Any, inputs: dict[str, Any]) -> dict[str, Any]:
        """The encoder outputs that `causal_lm` reads when it is called with these inputs, by modality."""
        return inputs.get("mm_encoder_outputs") or {}


def _between(ids: Tensor, start: int, end: int) -> Tensor:
    """The columns between a start and an end token, bool [B,L]."""
    return ((ids == start).long().cumsum(1) - (ids == end).long().cumsum(1)) > 0


def rope_inputs(function: Any, inputs: dict[str, Any]) -> dict[str, Any]:
    """The inputs that `get_rope_index` takes.

    Raises:
        ValueError: it requires one that is missing.
    """
    parameters = inspect.signature(function).parameters.values()
    known = {name: value for name, value in inputs.items() if value is not None}
    required = [p.name for p in parameters if p.default is p.empty and p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL)]
    if missing := [name for name in required if name not in known]:
        raise unsupported(f"get_rope_index requires {', '.join(missing)}, which the prompt does not have")
    return {p.name: known[p.name] for p in parameters if p.name in known}


_registered: dict[str, type[Backend]] = {}


def register_family(model_type: str, backend: type[Backend]) -> None:
    """Makes models of a type use a backend, such as a subclass of `Backend` for a model outside transformers.

        class Mine(Backend):
            video_parts = True  # its encoder returns each frame separately

        register_family("my_model", Mine)

    Args:
        model_type: the `model_type` of the config.
        backend: the class; it replaces the one that fewtokens has for the type, if any.

    Raises:
        ValueError: it is not a subclass of `Backend`.
    """
    if not (isinstance(backend, type) and issubclass(backend, Backend)):
        raise ValueError(f"a backend must be a subclass of fewtokens.llm.Backend, got {backend!r}")
    _registered[model_type] = backend


def backend_class(kind: str) -> type[Backend]:
    """The backend of a model_type; `Backend` itself if the type has no other."""
    if kind in _registered:
        return _registered[kind]
    kind = _SAME.get(kind, kind)
    if kind not in BACKENDS:
        return Backend
    module = import_module(f"{backends.__name__}.{kind}")
    classes = (value for value in vars(module).values() if isinstance(value, type) and issubclass(value, Backend))
    return next(backend for backend in classes if backend.name == kind)


def backend_of(model: Any) -> Backend:
    """Returns the backend of a model, which may be wrapped, see `unwrap`.

    Raises:
        ValueError: the model does not have the interface, or not in the installed transformers.
    """
    model = unwrap(model)
    if hasattr(model, "processor") and hasattr(model, "model"):  # a VideoLLM or a Session
        raise ValueError(f"a model is required, got a {type(model).__name__}; pass its attribute `model`")
    kind = getattr(getattr(model, "config", None), "model_type", None)
    if kind is None:
        raise ValueError(f"no video language model: {type(model).__name__}; a model of transformers is required")
    parameters = inspect.signature(model.forward).parameters
    # 5.18 has it, but assigns the wrong features to beams.
    if "mm_encoder_outputs" not in parameters or version() < (5, 19):
        raise ValueError(
            f"this {kind} does not accept precomputed features (mm_encoder_outputs); transformers 5.19 or newer and a "
            "model with its language-model head are required"
        )
    cache_name(model)  # raises an error if it is unknown
    backend = backend_class(kind)(kind)
    if backend.needs_items is None:
        backend.needs_items = not hasattr(model.base_model, "get_video_features")
    for (mean, std), kinds in _PACKED.items():
        if kind in kinds:
            backend.mean, backend.std, backend.cues = mean, std, (*backend.cues, "pixels")  # type: ignore[misc]
    if version() in backend.unsupported_versions:
        major, minor = version()
        raise ValueError(
            f"{backend.name} requires all rows of an image in transformers {major}.{minor}; install "
            f"{major}.{minor + 1} or newer"
        )
    return backend


def backend_named(kind: str) -> Backend:
    """Returns the backend of a model_type whose prompts `Processor` can make.

    Raises:
        ValueError: there is none.
    """
    backend = backend_class(kind)(kind)
    if backend.has_prompts:
        return backend
    if kind in _registered or any(family.name == kind and family.works for family in FAMILIES):
        raise ValueError(f"no prompts for a model of type {kind!r}; {OWN_PROCESSOR}")
    supported = (name for name in BACKENDS if backend_class(name)(name).has_prompts)
    raise ValueError(f"no video language model of type {kind!r}; supported types: {', '.join(supported)}")
