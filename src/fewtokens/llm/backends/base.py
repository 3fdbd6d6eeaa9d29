"""The interface to a family of video language models: one subclass of `Backend` per file in this folder.

All families are used the same way. The base model's `get_image_features` and `get_video_features` encode, and
`mm_encoder_outputs=` of `forward` and `generate` takes the features back (transformers 5.19 or newer); nothing is
patched. A backend maps the rows of an encoder's output to the images and videos of the prompt.
"""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from importlib import import_module
from math import isqrt
from pkgutil import iter_modules
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from fewtokens.core.attention_rule import AttentionRule
from fewtokens.core.grid import Grid
from fewtokens.core.method import Method
from fewtokens.core.shapes import shape_repr
from fewtokens.llm import backends
from fewtokens.llm.interface import CACHE_NAMES, attribute, unsupported, unwrap, version
from fewtokens.llm.pixels import PreparedVideo
from fewtokens.llm.tower import check_attention, record_cues, tower_of
from fewtokens.video import Video

MODALITIES = ("image", "video")
# The model_type of a config is the name of its module, which is imported when first needed.
BACKENDS = tuple(sorted(module.name for module in iter_modules(backends.__path__) if module.name != "base"))
"""The `model_type` of each supported family of transformers."""
CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
HALF = (0.5, 0.5, 0.5)
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@dataclass
class VisualFeatures:
    """One image or video of a prompt, as encoded.

    Attributes:
        modality: "image" or "video", whose placeholder stands for its rows.
        features: [n,D], rows in the order of the placeholders.
        grid: the cells of a video, T*H*W = n - tail; None for an image, which is kept in full.
        tail: the number of rows at the end that are not cells (a newline).
        deepstack: additional rows [n,D] for early layers of the language model.
        pixels: [n - tail,P,D], the pixels of each cell in 0..1 (the cue `pixels`); None if not requested.
        cues: cues of the vision tower by name, float32 [n - tail,...]; those requested.
    """

    modality: str
    features: Tensor
    grid: Grid | None = None
    tail: int = 0
    deepstack: list[Tensor] = field(default_factory=list)
    pixels: Tensor | None = None
    cues: dict[str, Tensor] = field(default_factory=dict)

    __repr__ = shape_repr


class Backend(ABC):
    """A family of video language models.

    Class attributes:
        needs_items: videos use the placeholder of images, so the prompt alone does not distinguish them.
        mrope: positions are (t, h, w) and come from the model's `get_rope_index`.
        stacked: modalities whose features `forward` takes as one tensor rather than a list.
        pixel_inputs: names of the inputs that the encoder reads, by modality.
        cues: the cues that the family can provide in addition to those of its vision tower.
        mean, std: of the normalized pixels; used for the cue `pixels`, and if a model's folder does not specify them.
        preprocess_config: values of the video processor that a folder may not specify; the defaults of transformers.
        video_marker: the text for a video in the chat template; None if it is the placeholder itself.
        template: the chat template for videos, if it is not the folder's.
        unsupported_versions: releases of transformers (major, minor) in which the family requires all rows of an image.
    """

    name: ClassVar[str] = ""
    needs_items: ClassVar[bool] = False
    mrope: ClassVar[bool] = False
    stacked: ClassVar[tuple[str, ...]] = ()
    pixel_inputs: ClassVar[dict[str, tuple[str, ...]]] = {
        "image": ("pixel_values",),
        "video": ("pixel_values_videos",),
    }
    cues: ClassVar[tuple[str, ...]] = ("text", "frame_global", "pixels")
    mean: ClassVar[Sequence[float]] = HALF
    std: ClassVar[Sequence[float]] = HALF
    preprocess_config: ClassVar[dict[str, Any]] = {}
    video_marker: ClassVar[str | None] = None
    template: ClassVar[str | None] = None
    unsupported_versions: ClassVar[tuple[tuple[int, int], ...]] = ()

    def defaults(self, config: Any) -> dict[str, Any]:
        """The preprocessing of a model with this config, for what its folder does not specify."""
        return {"resample": 3, "image_mean": self.mean, "image_std": self.std} | self.preprocess_config

    @abstractmethod
    def prepare(self, model: Any, processor: Any, video: Video) -> PreparedVideo:
        """Returns the frames as the model takes them, and the text that represents them in a prompt.

        Args:
            model: a model with its language-model head.
            processor: the `Processor`, for its preprocess_config and the special tokens of its tokenizer.
            video: frames uint8 [T,3,H,W] with their times.
        """

    @abstractmethod
    def visuals(
        self, model: nn.Module, modality: str, outputs: Any, inputs: dict[str, Any], items: Sequence[Any], pixels: bool
    ) -> list[VisualFeatures]:
        """Returns the images or videos of one modality, in the order of the prompt.

        Args:
            model: a model with its language-model head.
            modality: "image" or "video".
            outputs: the output of the encoder.
            inputs: the prompt, as the processor returns it.
            items: ("video", frames) and ("image", images) in order, if `needs_items`.
            pixels: whether to also return the pixels of each cell.
        """

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
        tower = tower_of(model)
        return self.cues if tower is None else (*self.cues, *tower.cues)

    def check_attention(self, model: Any, method: Method) -> None:
        """Checks that the vision tower has the attention that a method reads, see `fewtokens.llm.tower`."""
        check_attention(model, self.name, method)

    def recording(
        self, model: Any, modality: str, inputs: dict[str, Any], needs: Collection[str], rule: AttentionRule
    ) -> AbstractContextManager[Callable[[Sequence[VisualFeatures]], None]]:
        """Records cues of the vision tower while `encode` runs inside the block, see `record_cues`."""
        # Where videos are not images in a row, images are never reduced.
        return record_cues(model, modality, inputs, needs if modality == "video" or self.needs_items else (), rule)

    def placeholder(self, model: Any, modality: str) -> int | None:
        """The token id that stands for a row of features in the prompt."""
        return getattr(model.config, f"{modality}_token_id", None)

    def default_positions(self, model: Any) -> str:
        """The default for `positions`, see `compress`."""
        return "average" if self.mrope else "renumber"

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

    def pack(self, modality: str, outputs: Any, visuals: Sequence[VisualFeatures]) -> Any:
        """Returns the encoder's output with its rows replaced by those of `visuals`."""
        rows = [visual.features for visual in visuals]
        packed = type(outputs)()
        packed["pooler_output"] = torch.cat(rows)[:, None] if modality in self.stacked else rows
        if any(visual.deepstack for visual in visuals):
            packed["deepstack_features"] = [list(layer) for layer in zip(*(v.deepstack for v in visuals), strict=True)]
        return packed


def backend_of(model: Any) -> Backend:
    """Returns the backend of a model, which may be wrapped, see `unwrap`.

    Raises:
        ValueError: the model is not supported, or not by the installed transformers.
    """
    model = unwrap(model)
    if hasattr(model, "processor") and hasattr(model, "model"):  # a VideoLLM or a Session
        raise ValueError(f"a model is required, got a {type(model).__name__}; pass its attribute `model`")
    kind = getattr(getattr(model, "config", None), "model_type", type(model).__name__)
    backend = backend_named(kind)
    parameters = inspect.signature(model.forward).parameters
    # 5.18 has it, but assigns the wrong features to beams.
    if "mm_encoder_outputs" not in parameters or version() < (5, 19):
        raise ValueError(
            f"this {kind} does not accept precomputed features (mm_encoder_outputs); transformers 5.19 or newer and a "
            "model with its language-model head are required"
        )
    if not any(name in parameters for name in CACHE_NAMES):
        raise unsupported(f"{kind} takes its cache under another name than {' or '.join(CACHE_NAMES)}")
    if version() in backend.unsupported_versions:
        major, minor = version()
        raise ValueError(
            f"{backend.name} requires all rows of an image in transformers {major}.{minor}; install "
            f"{major}.{minor + 1} or newer"
        )
    return backend


def backend_named(kind: str) -> Backend:
    """Returns the backend of a model_type.

    Raises:
        ValueError: the model_type is not supported.
    """
    if kind not in BACKENDS:
        raise ValueError(f"no video language model of type {kind!r}; supported types: {', '.join(BACKENDS)}")
    module = import_module(f"{backends.__name__}.{kind}")
    classes = (value for value in vars(module).values() if isinstance(value, type) and issubclass(value, Backend))
    return next(backend for backend in classes if backend.name == kind)()


def square_side(cells: int, family: str) -> int:
    """Returns the side of a square of cells."""
    side = isqrt(cells)
    if side * side != cells:
        raise ValueError(f"{family}: {cells} rows per frame do not form a square")
    return side


def to_unit_pixels(values: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """Maps normalized pixels [...,3,H,W] back to 0..1."""
    shape = (3, 1, 1)
    scale, shift = values.new_tensor(std).reshape(shape), values.new_tensor(mean).reshape(shape)
    return (values * scale + shift).clamp(0, 1)


def cell_pixels(frames: Tensor, grid: Grid, side: int = 8) -> Tensor:
    """Returns the cue `pixels`, [S,1,side*side*3], of frames [T,3,H,W] in 0..1 on a grid of cells.

    Frames are resized so that each cell has `side` x `side` pixels; a cell of a tubelet takes its first frame.
    """
    frames = nn.functional.interpolate(
        frames.float(), size=(grid.H * side, grid.W * side), mode="bilinear", antialias=True, align_corners=False
    )
    frames = frames[:: max(1, len(frames) // grid.T)][: grid.T]
    cells = frames.reshape(grid.T, 3, grid.H, side, grid.W, side).permute(0, 2, 4, 3, 5, 1)
    return cells.reshape(grid.cells, 1, side * side * 3)


def group_blocks(
    blocks: Sequence[Tensor], items: Sequence[Any], frames: Tensor | None, family: str
) -> list[VisualFeatures]:
    """Groups images that share one placeholder into the images and videos that `items` lists.

    Args:
        blocks: rows [n,D] of each image, in the order of the prompt.
        items: ("video", frames) or ("image", images), in order; the counts must add up to the number of blocks.
        frames: [blocks,3,H,W] in 0..1, for the cue `pixels`, or None.
    """
    total = sum(count for _, count in items)
    if total != len(blocks):
        raise ValueError(f"{family}: items list {total} images, the prompt has {len(blocks)}")
    visuals, at = [], 0
    for kind, count in items:
        rows = torch.cat(list(blocks[at : at + count]))
        grid = pixels = None
        if kind == "video":
            side = square_side(len(blocks[at]), family)
            grid = Grid(count, side, side)
            pixels = None if frames is None else cell_pixels(frames[at : at + count], grid)
        visuals.append(VisualFeatures("image", rows, grid, pixels=pixels))
        at += count
    return visuals
