"""What a video language model must say of itself: one subclass of `Backend` a file, in this folder.

All of them are reached the same way. The base model's `get_image_features` and `get_video_features` encode, and
`mm_encoder_outputs=` of `forward` and `generate` takes the features back (transformers 5.19 or newer); nothing is
patched. A backend says how the rows of an encoder's output belong to the images and videos of the prompt.
"""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib import import_module
from math import isqrt
from pkgutil import iter_modules
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from fewtokens.core.grid import Grid
from fewtokens.core.shapes import by_shape
from fewtokens.llm import backends
from fewtokens.llm.interface import CACHE_NAMES, attribute, changed, unwrapped, version
from fewtokens.llm.pixels import PreparedVideo
from fewtokens.video import Video

MODALITIES = ("image", "video")
# The model_type of a config is the name of its module; none is imported before it is met.
BACKENDS = tuple(sorted(each.name for each in iter_modules(backends.__path__) if each.name != "base"))
CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
HALF = (0.5, 0.5, 0.5)
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@dataclass
class VisualFeatures:
    """One image or video of a prompt, as the encoder gave it.

    Attributes:
        modality: "image" or "video": whose placeholder stands for its rows.
        features: [n,D], its rows in the order of the placeholders.
        grid: the cells of a video, T*H*W = n - tail; None for an image, which is left whole.
        tail: rows at the end that are no cells (a newline).
        deepstack: more rows [n,D] for early layers of the language model.
        pixels: [n - tail,P,D] of each cell in 0..1, as the cue of that name; None if not requested.
    """

    modality: str
    features: Tensor
    grid: Grid | None = None
    tail: int = 0
    deepstack: list[Tensor] = field(default_factory=list)
    pixels: Tensor | None = None

    __repr__ = by_shape


class Backend(ABC):
    """A family of video language models.

    Class attributes:
        needs_items: videos have the placeholder of images, so that the prompt alone does not tell them apart.
        mrope: positions are (t, h, w) and come from the model's `get_rope_index`.
        stacked: modalities whose features `forward` takes as one tensor rather than a list.
        pixel_inputs: names of the inputs that hold what is encoded, by modality.
        cues: the cues that it can give.
        mean, std: of the normalised pixels, for the cue `pixels`, and where a folder does not say them.
        preprocess_config: of the video processor, for what a folder does not say; the defaults of transformers.
        video_marker: stands for a video in the chat template; None if it is the placeholder itself.
        template: the chat template for videos if it is not the folder's.
        without: releases of transformers (major, minor) in which the family takes no other count of rows than its own.
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
    without: ClassVar[tuple[tuple[int, int], ...]] = ()

    def defaults(self, config: Any) -> dict[str, Any]:
        """Numbers of the video processor where the folder of a model with this config does not say them."""
        return {"resample": 3, "image_mean": self.mean, "image_std": self.std} | self.preprocess_config

    @abstractmethod
    def prepare(self, model: Any, processor: Any, video: Video) -> PreparedVideo:
        """Frames as the model takes them, and the text that stands for them in a prompt.

        Args:
            model: with its language-model head.
            processor: the `Processor`: its preprocess_config, and how its tokenizer calls special tokens.
            video: frames uint8 [T,3,H,W] with their times.
        """

    @abstractmethod
    def visuals(
        self, model: nn.Module, modality: str, outputs: Any, inputs: dict[str, Any], items: Sequence[Any], pixels: bool
    ) -> list[VisualFeatures]:
        """The images or videos of one modality, in the order of the prompt.

        Args:
            model: with its language-model head.
            modality: "image" or "video".
            outputs: what the encoder gave.
            inputs: of the prompt, as the processor makes them.
            items: ("video", frames) and ("image", pictures) in order, where `needs_items`.
            pixels: cut the pixels of each cell too.
        """

    def encode(self, model: Any, modality: str, inputs: dict[str, Any]) -> Any:
        """What the encoder makes of the pixels of a modality.

        Raises:
            ValueError: the model has no encoder for it, or takes its pixels by another name.
        """
        encode = getattr(model.base_model, f"get_{modality}_features", None)
        takes = {} if encode is None else inspect.signature(encode).parameters
        given = {name: value for name, value in inputs.items() if name in takes and value is not None}
        names = self.pixel_inputs[modality]
        if encode is None or not any(name in given for name in names):
            raise ValueError(f"{self.name} has no use for {' or '.join(names)}; are they of another model?")
        return encode(**given, return_dict=True)

    def placeholder(self, model: Any, modality: str) -> int | None:
        """The id that stands for a row of features in the prompt."""
        return getattr(model.config, f"{modality}_token_id", None)

    def default_positions(self, model: Any) -> str:
        """How positions are given to tokens by default, see `compress`."""
        return "average" if self.mrope else "renumber"

    def default_methods(self, model: Any) -> Any:
        """The methods that reduce by default: a chain or a pipeline."""
        return ""

    def context_length(self, model: Any) -> int | None:
        """How many positions the model has; None for no limit."""
        return attribute(model.config.get_text_config(), "max_position_embeddings")

    def causal_lm(self, model: Any) -> Any:
        """The module that `generate` calls for each word."""
        return model

    def features_given(self, model: Any, inputs: dict[str, Any]) -> dict[str, Any]:
        """The encoder's outputs that `causal_lm` reads when it is called with these inputs, by modality."""
        return inputs.get("mm_encoder_outputs") or {}

    def pack(self, modality: str, outputs: Any, visuals: Sequence[VisualFeatures]) -> Any:
        """The encoder's output with other rows."""
        rows = [visual.features for visual in visuals]
        packed = type(outputs)()
        packed["pooler_output"] = torch.cat(rows)[:, None] if modality in self.stacked else rows
        if any(visual.deepstack for visual in visuals):
            packed["deepstack_features"] = [list(layer) for layer in zip(*(v.deepstack for v in visuals), strict=True)]
        return packed


def backend_of(model: Any) -> Backend:
    """The family of a model, which may be wrapped, see `unwrapped`.

    Raises:
        ValueError: it is not supported, or not in the installed transformers.
    """
    model = unwrapped(model)
    kind = getattr(getattr(model, "config", None), "model_type", type(model).__name__)
    backend = backend_named(kind)
    takes = inspect.signature(model.forward).parameters
    # 5.18 has it, but gives beams the wrong features.
    if "mm_encoder_outputs" not in takes or version() < (5, 19):
        raise ValueError(
            f"this {kind} takes no features made ahead (mm_encoder_outputs); transformers 5.19 or newer is needed, and "
            "a model with its language-model head"
        )
    if not any(name in takes for name in CACHE_NAMES):
        raise changed(f"has {kind} take its cache under another name than {' or '.join(CACHE_NAMES)}")
    if version() in backend.without:
        major, minor = version()
        raise ValueError(
            f"{backend.name} takes all rows of a picture or none in transformers {major}.{minor}; install "
            f"{major}.{minor + 1} or newer"
        )
    return backend


def backend_named(kind: str) -> Backend:
    """The backend of a model_type.

    Raises:
        ValueError: it is not supported.
    """
    if kind not in BACKENDS:
        raise ValueError(f"no video language model of the kind {kind!r} is known; there are {', '.join(BACKENDS)}")
    module = import_module(f"{backends.__name__}.{kind}")
    classes = (each for each in vars(module).values() if isinstance(each, type) and issubclass(each, Backend))
    return next(each for each in classes if each.name == kind)()


def side_of(cells: int, who: str) -> int:
    """The side of a square of cells."""
    side = isqrt(cells)
    if side * side != cells:
        raise ValueError(f"{who}: {cells} rows of a frame make no square")
    return side


def to_unit_pixels(values: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """Normalised pixels [...,3,H,W] back in 0..1."""
    shape = (3, 1, 1)
    scale, shift = values.new_tensor(std).reshape(shape), values.new_tensor(mean).reshape(shape)
    return (values * scale + shift).clamp(0, 1)


def cell_pixels(frames: Tensor, grid: Grid, side: int = 8) -> Tensor:
    """The cue `pixels` of frames [T,3,H,W] in 0..1 on a grid of cells, [S,1,side*side*3].

    Frames are resized so that each cell has `side` x `side` pixels; a cell of a tubelet takes its first frame.
    """
    frames = nn.functional.interpolate(
        frames.float(), size=(grid.H * side, grid.W * side), mode="bilinear", antialias=True, align_corners=False
    )
    frames = frames[:: max(1, len(frames) // grid.T)][: grid.T]
    cells = frames.reshape(grid.T, 3, grid.H, side, grid.W, side).permute(0, 2, 4, 3, 5, 1)
    return cells.reshape(grid.cells, 1, side * side * 3)


def grouped_blocks(
    blocks: Sequence[Tensor], items: Sequence[Any], frames: Tensor | None, who: str
) -> list[VisualFeatures]:
    """Pictures that share one placeholder, as the images and videos that `items` names.

    Args:
        blocks: rows [n,D] of each picture, in the order of the prompt.
        items: ("video", frames) or ("image", pictures), in order; they must add up to the blocks.
        frames: [blocks,3,H,W] in 0..1, for the cue `pixels`, or None.
    """
    if sum(count for _, count in items) != len(blocks):
        raise ValueError(f"{who}: the items name {sum(count for _, count in items)} pictures, there are {len(blocks)}")
    visuals, at = [], 0
    for kind, count in items:
        rows = torch.cat(list(blocks[at : at + count]))
        grid = pixels = None
        if kind == "video":
            side = side_of(len(blocks[at]), who)
            grid = Grid(count, side, side)
            pixels = None if frames is None else cell_pixels(frames[at : at + count], grid)
        visuals.append(VisualFeatures("image", rows, grid, pixels=pixels))
        at += count
    return visuals
