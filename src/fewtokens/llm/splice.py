"""Few tokens in a prompt: encode, reduce, and write placeholders, masks, positions and labels anew.

    short = compress_inputs(model, inputs, "token_dynamics(keep=32)")
    model.generate(**short)        model(**short)        # with labels, a loss

Text stays as it is. A video's rows are replaced by its tokens, each of which stands where the cell nearest to its mean
position stood. `mm_encoder_outputs` carries the features (and DeepStack features, merged by the same plan), so that the
model puts them in itself, once for each beam.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from fewtokens.core import registry
from fewtokens.core.layer_method import PlacedVideo
from fewtokens.core.method import Method
from fewtokens.core.pipeline import Pipeline
from fewtokens.core.tokens import Tokens
from fewtokens.llm.backends.base import MODALITIES, Backend, backend_of
from fewtokens.llm.interface import check_parameters, unwrapped
from fewtokens.llm.layout import Layout, asked_columns
from fewtokens.llm.prompt_editor import EditedPrompt, PromptEditor
from fewtokens.llm.visuals import EncodedVisuals, ReducedVisual, encode_visuals, reduce_visuals

LAYOUTS = ("per_frame", "collapse")
POSITIONS = ("keep", "average", "renumber")
_OPTIONS = ("layout", "positions", "items")
Methods: TypeAlias = str | Sequence[Method] | Pipeline
# Describe pixels or the sequence as it was; of no use once the features are made.
_CONSUMED = (
    "image_grid_thw", "video_grid_thw", "second_per_grid_ts", "mm_token_type_ids", "image_sizes", "image_sizes_videos",
    "video_merge_sizes", "image_merge_sizes", "video_compression_mask", "pixel_attention_mask", "batch_num_images",
    "pixel_values", "pixel_values_videos", "video_times", "video_cells", "video_grid",
)  # fmt: skip


@dataclass
class Compressed:
    """A shorter prompt.

    Attributes:
        inputs: for `generate` or `forward`.
        tokens: what became of each video, in the order of the prompt.
        before, after: int64 [B], length of each prompt without padding.
        shift: int64 [B], by how much positions of text that follows are ahead of a count of the tokens (behind it where
            it is negative); 0 where positions were renumbered.
        layout: where the visual tokens stand; None where the prompt is text alone.
    """

    inputs: dict[str, Any]
    tokens: list[Tokens] = field(default_factory=list)
    before: Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.int64))
    after: Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.int64))
    shift: Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.int64))
    layout: Layout | None = None


def compress_inputs(model: Any, inputs: Any, spec: Methods, **options: Any) -> dict[str, Any]:
    """A prompt with few visual tokens, for `model.generate(**short)` or `model(**short)`; see `compress`.

    A later turn on the cache is for `attach`, which gives it its positions; so is a prompt with images alone, of which
    nothing is reduced.
    """
    check_options("compress_inputs", options)
    return compress(model, inputs, spec, **options).inputs


def check_options(caller: str, options: Iterable[str]) -> None:
    """Raises a ValueError if an option is none of `compress`."""
    if unknown := sorted(set(options) - set(_OPTIONS)):
        raise ValueError(
            f"{caller} takes {', '.join(_OPTIONS)}; not {', '.join(unknown)}. Arguments of a method stand in the spec, "
            "such as 'tome(keep=0.1)'"
        )


def compress(
    model: Any,
    inputs: Any,
    spec: Methods,
    *,
    layout: str = "per_frame",
    positions: str | None = None,
    items: Sequence[Sequence[tuple[str, int]]] | None = None,
) -> Compressed:
    """Encodes the images and videos of a prompt, reduces the videos and shortens the prompt to fit.

    Args:
        model: of a family in `BACKENDS`, with its language-model head; also wrapped, see `unwrapped`.
        inputs: what the processor made: input_ids [B,L], attention_mask, pixels, grids; labels [B,L] where there are
            some. Whatever else there is goes along.
        spec: a chain of methods of the stages pixels and tokens. Their features have the width of the language model.
            Methods of the pixels stage decide on pixels what the language model is spared; these encoders take whole
            frames. Query-aware ones are given the embedded text of the prompt.
        layout: where a family writes words between frames: "per_frame" keeps them and gives each token to the frame
            nearest to its mean time; "collapse" takes them out and leaves one block of tokens.
        positions: "renumber" counts the tokens at hand, "keep" gives a token the position of the cell nearest to it,
            "average" a position between those of its cells; the text keeps its own with both. None is "average" where
            positions are (t, h, w), "renumber" elsewhere.
        items: for families whose videos and images share one placeholder: what each prompt holds, in order, such as
            [[("image", 1), ("video", 8)]] (pictures). None takes all pictures of a prompt as one video where there
            are several.

    Images are left whole, which a warning says where there are methods; so do methods with random weights warn.

    Raises:
        ValueError: another family, a missing cue, a count that does not meet the budget, a prompt whose placeholders
            do not fit its features, a video in a later turn.
    """
    model = unwrapped(model)
    backend = backend_of(model)
    prompt = dict(inputs)
    pipeline = as_pipeline(spec, model)
    if layout not in LAYOUTS:
        raise ValueError(f"layout must be one of {', '.join(LAYOUTS)}, got {layout!r}")
    found = encode_visuals(backend, model, prompt, items, pixels="pixels" in pipeline.needs)
    if not found:
        return Compressed(prompt)
    shorts = {modality: reduce_visuals(backend, model, pipeline, prompt, modality, found) for modality in found}
    if len(pipeline.methods) and any(short.tokens is None for each in shorts.values() for short in each):
        warnings.warn("images in the prompt are left whole; methods reduce videos only", stacklevel=2)
    made = splice(backend, model, prompt, found, shorts, layout=layout, positions=positions)
    for outputs in made.inputs["mm_encoder_outputs"].values():
        object.__setattr__(outputs, "maker_by_fewtokens", pipeline)
    return made


def as_pipeline(spec: Methods, model: Any) -> Pipeline:
    """The chain, on the model's device; trainable methods are built for the width of the language model.

    Raises:
        ValueError: a method that acts inside an encoder or the language model.
    """
    if isinstance(spec, Pipeline):
        return spec
    methods = built(spec, model)
    for method in methods:
        if method.stage not in ("pixels", "tokens"):
            raise ValueError(
                f"{method.name} acts in the stage {method.stage!r}; what an encoder gives is reduced by methods of "
                "the stages pixels and tokens"
            )
    return Pipeline(methods)


def built(spec: str | Sequence[Method], model: Any) -> Sequence[Any]:
    """The methods of a spec string, in eval mode on the model's device and for its width; given ones as they are."""
    if not isinstance(spec, str):
        return spec
    width = model.get_input_embeddings().weight.shape[1]
    methods = registry.build(spec, dim=width) if spec.strip() else []
    for method in methods:
        if isinstance(method, nn.Module):
            method.eval().to(model.device)
    warn_untrained(methods)
    return methods


def warn_untrained(methods: Sequence[Method]) -> None:
    """Warns of methods whose weights are random and would give nonsense."""
    for method in methods:
        if isinstance(method, Method) and method.untrained:
            warnings.warn(
                f"{method.name} has random weights and gives nonsense; give it trained ones by checkpoint='FILE'",
                stacklevel=2,
            )


def splice(
    backend: Backend,
    model: Any,
    prompt: dict[str, Any],
    found: dict[str, EncodedVisuals],
    shorts: dict[str, list[ReducedVisual]],
    *,
    layout: str = "per_frame",
    positions: str | None = None,
) -> Compressed:
    """The prompt with the rows of `shorts` where those of `found` were; see `compress`."""
    positions = positions or backend.default_positions(model)
    if positions not in POSITIONS:
        raise ValueError(f"positions must be one of {', '.join(POSITIONS)}, got {positions!r}")
    ids = prompt["input_ids"]
    mask = prompt.get("attention_mask")
    mask = torch.ones_like(ids) if mask is None else mask
    old = _positions(backend, model, prompt, mask)
    rows = [PromptEditor(ids[b], mask[b], old[:, b], prompt, b) for b in range(len(ids))]
    placed: list[tuple[int, int]] = []  # prompt and number in it of each video
    for modality, here in found.items():
        placeholder = backend.placeholder(model, modality)
        for visual, short, b, places in zip(here.visuals, shorts[modality], here.row, here.places, strict=True):
            rows[b].replace(visual, short, places, int(placeholder or 0), layout, positions)
            if short.tokens is not None:
                placed.append((b, len(rows[b].new) - 1))
    lines = [row.line() for row in rows]
    width = max(len(line.ids) for line in lines)
    left = not bool((mask[:, -1] == 0).any())

    def pad(values: list[Tensor], fill: int) -> Tensor:
        sides = [(width - value.shape[-1], 0) if left else (0, width - value.shape[-1]) for value in values]
        return torch.stack([nn.functional.pad(v, side, value=fill) for v, side in zip(values, sides, strict=True)])

    before, after = mask.sum(1), torch.tensor([len(line.ids) for line in lines], device=ids.device)
    result = {name: value for name, value in prompt.items() if name not in _CONSUMED}
    result["input_ids"] = pad([line.ids for line in lines], _pad_id(model))
    result["attention_mask"] = pad([torch.ones_like(line.ids) for line in lines], 0).to(mask.dtype)
    if "labels" in prompt and prompt["labels"] is not None:
        result["labels"] = pad([line.labels for line in lines], -100)
    shift = torch.zeros_like(after)
    if positions != "renumber":
        shift = before - after
    if backend.mrope:
        counted = (result["attention_mask"].long().cumsum(1) - 1).clamp(min=0)
        three = pad([line.positions for line in lines], 0).transpose(0, 1)
        three = counted.expand(3, -1, -1) if positions == "renumber" else three
        result["position_ids"] = torch.cat([counted[None], three])
        # From the words at the end; the model's own delta is that of the largest position, which Qwen2.5-VL gives to
        # the last frame of a video.
        ends = torch.stack([line.positions[:, -1].amax() + 1 for line in lines])
        shift = torch.zeros_like(after) if positions == "renumber" else ends - after
        # Where the model looks when a later turn goes on without `attach`.
        model.base_model.rope_deltas = shift[:, None]
    elif positions != "renumber":
        result["position_ids"] = pad([line.positions for line in lines], 0)[:, 0]
    tokens = [short.tokens for modality in found for short in shorts[modality] if short.tokens is not None]
    stand = _layout(backend, model, result, lines, placed, tokens)
    result["mm_encoder_outputs"] = {
        modality: mark_reduced(
            backend.pack(modality, here.outputs, [short.visual for short in shorts[modality]]), stand
        )
        for modality, here in found.items()
    }
    return Compressed(result, tokens, before, after, shift, stand)


def mark_reduced(outputs: Any, layout: Layout | None = None) -> Any:
    """The features as an object that says that they went through here, and where they stand, see `attach`.

    By its type, so that parts of it are marked too: `generate` cuts it for `prefill_chunk_size`. Those have no layout.
    """
    kind: Any = type(outputs)
    marked = _marked(kind)(**outputs)
    object.__setattr__(marked, "layout_by_fewtokens", layout)
    return marked


@cache
def _marked(kind: type) -> type:
    return dataclass(type(kind.__name__, (kind,), {"reduced_by_fewtokens": True, "__module__": __name__}))


def reduced(outputs: Any) -> bool:
    """Whether features went through here."""
    return getattr(outputs, "reduced_by_fewtokens", False)


def layout_of(outputs: Any) -> Layout | None:
    """Where features stand; None where they are a part, or did not go through here."""
    return getattr(outputs, "layout_by_fewtokens", None)


def maker(outputs: Any) -> Pipeline | None:
    """What `compress` reduced features by."""
    return getattr(outputs, "maker_by_fewtokens", None)


def _layout(
    backend: Backend, model: Any, result: dict[str, Any], lines: list[EditedPrompt], placed: Any, tokens: list[Tokens]
) -> Layout:
    ids, mask = result["input_ids"], result["attention_mask"].bool()
    visual = torch.zeros_like(mask)
    for modality in MODALITIES:
        if (placeholder := backend.placeholder(model, modality)) is not None:
            visual |= ids == placeholder
    asked = asked_columns(result)
    column = torch.arange(ids.shape[1], device=ids.device)
    # How far the padding on the left moved each prompt.
    offset = mask.long().argmax(1).tolist()
    videos = [
        PlacedVideo(b, lines[b].columns[number] + offset[b], of) for (b, number), of in zip(placed, tokens, strict=True)
    ]
    return Layout(visual & mask, column.where(asked, 0).amax(1), videos)


def _pad_id(model: Any) -> int:
    for config in (model.generation_config, model.config, model.config.get_text_config()):
        if (number := getattr(config, "pad_token_id", None)) is not None:
            return int(number)
    return 0


def _positions(backend: Backend, model: Any, prompt: dict[str, Any], mask: Tensor) -> Tensor:
    """Positions of the prompt as it was, int64 [A,B,L] of A = 1 or 3 axes."""
    ids = prompt["input_ids"]
    if not backend.mrope:
        return (mask.long().cumsum(1) - 1).clamp(min=0)[None]
    kinds = prompt.get("mm_token_type_ids")
    if kinds is None:
        kinds = sum(
            (ids == backend.placeholder(model, modality)).long() * number
            for number, modality in enumerate(MODALITIES, start=1)
        )
    told = ("image_grid_thw", "video_grid_thw", "second_per_grid_ts")
    index = model.base_model.get_rope_index
    check_parameters(index, ("input_ids", "mm_token_type_ids", "attention_mask", *told), "get_rope_index")
    known = {name: prompt[name] for name in told if prompt.get(name) is not None}
    found, _ = index(ids, mm_token_type_ids=kinds, attention_mask=mask, **known)
    return found
