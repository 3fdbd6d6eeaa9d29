"""Few tokens in a prompt: encode, reduce, and write placeholders, masks, positions and labels anew.

    short = compress_inputs(model, inputs, "token_dynamics(keep=32)")
    model.generate(**short)        model(**short)        # with labels, a loss

Text stays as it is. A video's rows are replaced by its tokens, each of which stands where the cell nearest to its mean
position stood. `mm_encoder_outputs` carries the features (and DeepStack features, merged by the same plan), so that the
model puts them in itself, once for each beam.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from fewtokens.batch import collate
from fewtokens.llm.family import MODALITIES, Family, Visual, family_of
from fewtokens.llm.layout import Layout, Video
from fewtokens.method import CUES, Method
from fewtokens.pipeline import Pipeline
from fewtokens.plan import Plan
from fewtokens.tokens import Tokens

LAYOUTS = ("per_frame", "collapse")
POSITIONS = ("keep", "average", "renumber")
# Describe pixels or the sequence as it was; of no use once the features are made.
_CONSUMED = (
    "image_grid_thw", "video_grid_thw", "second_per_grid_ts", "mm_token_type_ids", "image_sizes", "image_sizes_videos",
    "video_merge_sizes", "image_merge_sizes", "video_compression_mask", "pixel_attention_mask", "batch_num_images",
    "pixel_values", "pixel_values_videos",
)  # fmt: skip


@dataclass
class Short:
    """A visual after reduction: its rows now, and where they come from.

    Attributes:
        visual: with the rows that the language model is given: tokens, then the tail.
        tokens: of a video; None where it is an image, whose rows are as they were.
    """

    visual: Visual
    tokens: Tokens | None = None

    @property
    def rows(self) -> int:
        return len(self.visual.features)


@dataclass
class Compressed:
    """A shorter prompt.

    Attributes:
        inputs: for `generate` or `forward`.
        tokens: what became of each video, in the order of the prompt.
        before, after: int64 [B], length of each prompt without padding.
        shift: int64 [B], by how much positions of text that follows are ahead of a count of the tokens; 0 where
            positions were renumbered.
        layout: where the visual tokens stand; None where the prompt is text alone.
    """

    inputs: dict[str, Any]
    tokens: list[Tokens] = field(default_factory=list)
    before: Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.int64))
    after: Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.int64))
    shift: Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.int64))
    layout: Layout | None = None


def compress_inputs(model: Any, inputs: Any, spec: str | Sequence[Method] | Pipeline, **options: Any) -> dict[str, Any]:
    """A prompt with few visual tokens, for `model.generate(**short)` or `model(**short)`; see `compress`."""
    return compress(model, inputs, spec, **options).inputs


def compress(
    model: Any,
    inputs: Any,
    spec: str | Sequence[Method] | Pipeline,
    *,
    layout: str = "per_frame",
    positions: str | None = None,
    items: Sequence[Sequence[tuple[str, int]]] | None = None,
) -> Compressed:
    """Encodes the images and videos of a prompt, reduces the videos and shortens the prompt to fit.

    Args:
        model: of a family in `FAMILIES`, with its language-model head.
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

    Raises:
        ValueError: another family, a missing cue, a count that does not meet the budget, a prompt whose placeholders
            do not fit its features, a video in a later turn.
    """
    family = family_of(model)
    prompt = dict(inputs)
    pipeline = as_pipeline(spec, model)
    if layout not in LAYOUTS:
        raise ValueError(f"layout must be one of {', '.join(LAYOUTS)}, got {layout!r}")
    found = encode_visuals(family, model, prompt, items, pixels=needs(pipeline, "pixels"))
    if not found:
        return Compressed(prompt)
    shorts = {modality: reduce_visuals(family, model, pipeline, prompt, modality, found) for modality in found}
    return splice(family, model, prompt, found, shorts, layout=layout, positions=positions)


def as_pipeline(spec: str | Sequence[Method] | Pipeline, model: Any) -> Pipeline:
    """The chain, on the model's device; trainable methods are built for the width of the language model.

    Raises:
        ValueError: a method that acts inside an encoder or the language model.
    """
    if isinstance(spec, Pipeline):
        return spec
    from fewtokens import registry

    width = model.get_input_embeddings().weight.shape[1]
    if isinstance(spec, str):
        methods: Sequence[Method] = registry.build(spec, width=width) if spec.strip() else ()
        methods = [method.eval().to(model.device) for method in methods]
    else:
        methods = spec
    for method in methods:
        if method.stage not in ("pixels", "tokens"):
            raise ValueError(
                f"{method.name} acts in the stage {method.stage!r}; what an encoder gives is reduced by methods of "
                "the stages pixels and tokens"
            )
    return Pipeline(methods)


def needs(pipeline: Pipeline, cue: str) -> bool:
    return any(cue in method.needs for method in pipeline.methods)  # type: ignore[operator]


@dataclass
class Found:
    """The visuals of one modality, the encoder's output they came in, and each one's prompt and places in it."""

    outputs: Any
    visuals: list[Visual]
    row: list[int]
    places: list[Tensor]


def encode_visuals(
    family: Family, model: Any, prompt: dict[str, Any], items: Any = None, *, pixels: bool = False
) -> dict[str, Found]:
    """Encodes what a prompt holds; nothing where it is text alone.

    Raises:
        ValueError: placeholders that do not fit the features, a video in a later turn.
    """
    found = {}
    ids = prompt.get("input_ids")
    for modality in MODALITIES:
        if not any(name in prompt and prompt[name] is not None for name in _pixel_names(modality)):
            continue
        if ids is None:
            raise ValueError("a prompt is shortened by its input_ids; give them rather than inputs_embeds")
        cache = prompt.get("past_key_values")
        if cache is not None and cache.get_seq_length() > 0:
            raise ValueError("pixels in a later turn cannot be spliced into a kept cache; begin a new one")
        outputs = family.encode(model, modality, prompt)
        if outputs is None:
            continue
        at = (ids == family.placeholder(model, modality)).nonzero()
        if family.needs_items:
            items = items if items is not None else _guess_items(family, model, outputs, at, len(ids))
        flat = [item for row in items or () for item in row]
        visuals = family.visuals(model, modality, outputs, prompt, flat, pixels)
        lengths = [len(visual.features) for visual in visuals]
        if sum(lengths) != len(at):
            raise ValueError(
                f"the prompt has {len(at)} places for {modality} features, the encoder gives {sum(lengths)}; was it "
                "made by the processor of this model?"
            )
        parts = at.split(lengths)
        if any(len(part) and bool((part[:, 0] != part[0, 0]).any()) for part in parts):
            raise ValueError(f"the places of one {modality} lie in two prompts of the batch")
        found[modality] = Found(outputs, visuals, [int(p[0, 0]) for p in parts], [p[:, 1] for p in parts])
    return found


def _pixel_names(modality: str) -> tuple[str, ...]:
    return ("pixel_values",) if modality == "image" else ("pixel_values_videos",)


def _guess_items(family: Family, model: Any, outputs: Any, at: Tensor, prompts: int) -> list[list[tuple[str, int]]]:
    """All pictures of a prompt are one video where there are several."""
    size = getattr(model.base_model, "image_seq_len", None) or outputs.pooler_output[0].shape[0]
    counts = (torch.bincount(at[:, 0], minlength=prompts) // size).tolist()
    return [[("video" if count > 1 else "image", count)] if count else [] for count in counts]


def reduce_visuals(
    family: Family, model: Any, pipeline: Pipeline, prompt: dict[str, Any], modality: str, found: dict[str, Found]
) -> list[Short]:
    """The visuals with their videos reduced.

    Raises:
        ValueError: a cue that the family cannot give, or a count that does not meet the budget.
    """
    wanted = {need for method in pipeline.methods for need in method.needs}  # type: ignore[union-attr]
    for need in sorted(wanted - set(family.gives)):
        who = next(method.name for method in pipeline.methods if need in method.needs)  # type: ignore[operator]
        raise ValueError(f"{who} needs {need} ({CUES[need]}), which {family.name} cannot give")
    here = found[modality]
    shorts = [Short(visual) for visual in here.visuals]
    videos = [number for number, visual in enumerate(here.visuals) if visual.grid is not None]
    if not videos or not len(pipeline.methods):
        for number in videos:
            visual = here.visuals[number]
            shorts[number].tokens = _tokens(visual)
        return shorts
    # Videos with frames of one size go together, unless each has a text of its own.
    groups: dict[tuple[int, ...], list[int]] = {}
    for number in videos:
        grid = here.visuals[number].grid
        assert grid is not None
        alone = "text" in wanted or "pixels" in wanted or "frame_global" in wanted
        groups.setdefault((grid.H, grid.W, number if alone else -1), []).append(number)
    for numbers in groups.values():
        group = [_tokens(here.visuals[number]) for number in numbers]
        first = here.visuals[numbers[0]]
        cues: dict[str, Tensor] = {}
        if "frame_global" in wanted:
            cues["frame_global"] = group[0].features.unflatten(1, (group[0].grid.T, -1)).mean(2)
        if "pixels" in wanted:
            assert first.pixels is not None
            cues["pixels"] = first.pixels[None]
        if "text" in wanted:
            cues["text"] = _text(family, model, prompt, here.row[numbers[0]])
        whole = group[0] if len(group) == 1 else collate(group)
        reduced = pipeline(whole, **cues)
        for number, before, after in zip(numbers, group, reduced, strict=True):
            planned = pipeline.planned_count(before.grid)
            if planned is not None and planned != after.N:
                raise ValueError(f"{pipeline.spec} was to leave {planned} tokens of {before.N} and left {after.N}")
            shorts[number] = Short(_shortened(here.visuals[number], before, after), after)
    return shorts


def _tokens(visual: Visual) -> Tokens:
    assert visual.grid is not None
    return Tokens.from_cells(visual.features[None, : visual.grid.cells], visual.grid)


def _text(family: Family, model: Any, prompt: dict[str, Any], row: int) -> Tensor:
    """The embedded words of a prompt [1,L,D]; its placeholders and padding are left out."""
    ids = prompt["input_ids"][row]
    words = torch.ones_like(ids, dtype=torch.bool)
    for modality in MODALITIES:
        if (placeholder := family.placeholder(model, modality)) is not None:
            words &= ids != placeholder
    if prompt.get("attention_mask") is not None:
        words &= prompt["attention_mask"][row].bool()
    return model.get_input_embeddings()(ids[words])[None]


def _shortened(visual: Visual, before: Tokens, after: Tokens) -> Visual:
    """The visual with the rows of `after`; what follows the cells, and DeepStack, along with it."""
    cells = before.N
    if visual.deepstack:
        if after.weights is not None:
            share = after.weights / after.weights.sum(2, keepdim=True).clamp(min=1e-12)
            plan = Plan(after.count, after.N, weights=share)
        else:
            plan = Plan.between(before, after)
    moved = [torch.cat([plan.move(layer[None, :cells], before.sizes)[0], layer[cells:]]) for layer in visual.deepstack]
    features = torch.cat([after.features[0].to(visual.features.dtype), visual.features[cells:]])
    return replace(visual, features=features, deepstack=moved, pixels=None)


def splice(
    family: Family,
    model: Any,
    prompt: dict[str, Any],
    found: dict[str, Found],
    shorts: dict[str, list[Short]],
    *,
    layout: str = "per_frame",
    positions: str | None = None,
) -> Compressed:
    """The prompt with the rows of `shorts` where those of `found` were; see `compress`."""
    positions = positions or ("average" if family.mrope else "renumber")
    if positions not in POSITIONS:
        raise ValueError(f"positions must be one of {', '.join(POSITIONS)}, got {positions!r}")
    ids = prompt["input_ids"]
    mask = prompt.get("attention_mask")
    mask = torch.ones_like(ids) if mask is None else mask
    old, delta = _positions(family, model, prompt, mask)
    rows = [_Row(ids[b], mask[b], old[:, b], prompt, b) for b in range(len(ids))]
    placed: list[tuple[int, int]] = []  # prompt and number in it of each video
    for modality, here in found.items():
        placeholder = family.placeholder(model, modality)
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
    if family.mrope:
        counted = (result["attention_mask"].long().cumsum(1) - 1).clamp(min=0)
        three = pad([line.positions for line in lines], 0).transpose(0, 1)
        three = counted.expand(3, -1, -1) if positions == "renumber" else three
        result["position_ids"] = torch.cat([counted[None], three])
        shift = torch.zeros_like(after) if positions == "renumber" else delta + shift
        # Where the model looks when a later turn goes on.
        model.base_model.rope_deltas = shift[:, None]
    elif positions != "renumber":
        result["position_ids"] = pad([line.positions for line in lines], 0)[:, 0]
    tokens = [short.tokens for modality in found for short in shorts[modality] if short.tokens is not None]
    stand = _layout(family, model, result, lines, placed, tokens)
    result["mm_encoder_outputs"] = {
        modality: mark(family.pack(modality, here.outputs, [short.visual for short in shorts[modality]]), stand)
        for modality, here in found.items()
    }
    return Compressed(result, tokens, before, after, shift, stand)


def mark(outputs: Any, layout: Layout | None = None) -> Any:
    """Remembers that these features went through here, and where they stand, see `attach`."""
    object.__setattr__(outputs, "reduced_by_fewtokens", True)
    object.__setattr__(outputs, "layout_by_fewtokens", layout)
    return outputs


def _layout(
    family: Family, model: Any, result: dict[str, Any], lines: list[_Line], placed: Any, tokens: list[Tokens]
) -> Layout:
    ids, mask = result["input_ids"], result["attention_mask"].bool()
    visual = torch.zeros_like(mask)
    for modality in MODALITIES:
        if (placeholder := family.placeholder(model, modality)) is not None:
            visual |= ids == placeholder
    asked = mask
    if result.get("labels") is not None:
        asked = mask & ((result["labels"] != -100).long().cumsum(1) == 0)
    column = torch.arange(ids.shape[1], device=ids.device)
    # How far the padding on the left moved each prompt.
    offset = mask.long().argmax(1).tolist()
    videos = [
        Video(b, lines[b].columns[number] + offset[b], of) for (b, number), of in zip(placed, tokens, strict=True)
    ]
    return Layout(visual & mask, column.where(asked, 0).amax(1), videos)


def _pad_id(model: Any) -> int:
    for config in (model.generation_config, model.config, model.config.get_text_config()):
        if (number := getattr(config, "pad_token_id", None)) is not None:
            return int(number)
    return 0


def _positions(family: Family, model: Any, prompt: dict[str, Any], mask: Tensor) -> tuple[Tensor, Tensor]:
    """Positions of the prompt as it was, int64 [A,B,L] of A = 1 or 3 axes, and what text after is ahead by [B]."""
    ids = prompt["input_ids"]
    if not family.mrope:
        return (mask.long().cumsum(1) - 1).clamp(min=0)[None], torch.zeros(
            len(ids), dtype=torch.int64, device=ids.device
        )
    kinds = prompt.get("mm_token_type_ids")
    if kinds is None:
        kinds = sum(
            (ids == family.placeholder(model, modality)).long() * number
            for number, modality in enumerate(MODALITIES, start=1)
        )
    told = ("image_grid_thw", "video_grid_thw", "second_per_grid_ts")
    known = {name: prompt[name] for name in told if prompt.get(name) is not None}
    found, delta = model.base_model.get_rope_index(ids, mm_token_type_ids=kinds, attention_mask=mask, **known)
    return found, delta.reshape(-1)


@dataclass
class _Line:
    """A prompt without padding: ids [L], positions [A,L], labels [L]; and the columns of each group that came in."""

    ids: Tensor
    positions: Tensor
    labels: Tensor
    columns: Sequence[Tensor]


class _Row:
    """One prompt of a batch, as columns that are kept, and columns that come in their place."""

    def __init__(self, ids: Tensor, mask: Tensor, positions: Tensor, prompt: dict[str, Any], number: int) -> None:
        self.ids, self.positions = ids, positions
        labels = prompt.get("labels")
        self.labels = torch.full_like(ids, -100) if labels is None else labels[number]
        self.kept = mask.bool().clone()
        self.new: list[tuple[Tensor, int, Tensor]] = []  # place, id, positions of each group of columns

    def replace(
        self, visual: Visual, short: Short, places: Tensor, placeholder: int, layout: str, positions: str
    ) -> None:
        """Puts the rows of a visual where its placeholders stood."""
        if short.tokens is None:
            return
        assert visual.grid is not None
        cells = visual.grid.cells
        own = places[:cells]
        self.kept[own] = False
        # A run is a row of placeholders without words between them.
        begins = torch.cat([own.new_ones(1, dtype=torch.bool), own[1:] != own[:-1] + 1])
        start = own[begins][begins.cumsum(0) - 1]
        if layout == "collapse":
            self.kept[int(own[0]) : int(own[-1]) + 1] = False
            start = own[:1].expand(cells)
        where = short.tokens.positions[0]
        nearest = _cell(where.round(), visual.grid.shape)
        at = self.positions[:, own]
        found = at[:, nearest] if positions != "average" else _between(at, where, visual.grid.shape)
        self.new.append((start[nearest], placeholder, found))

    def line(self) -> _Line:
        """What stands there now, in order; new columns stay in the order they came in."""
        kept = self.kept.nonzero().squeeze(1)
        place = torch.cat([kept, *(place for place, _, _ in self.new)])
        ids = torch.cat([self.ids[kept], *(torch.full_like(place, id) for place, id, _ in self.new)])
        at = torch.cat([self.positions[:, kept], *(found for _, _, found in self.new)], dim=1)
        blank = [torch.full_like(place, -100) for place, _, _ in self.new]
        labels = torch.cat([self.labels[kept], *blank])
        order = place.argsort(stable=True)
        columns = order.argsort()[len(kept) :].split([len(place) for place, _, _ in self.new])
        return _Line(ids[order], at[:, order], labels[order], columns)


def _cell(where: Tensor, shape: tuple[int, int, int]) -> Tensor:
    """The number of the cell at whole (t, y, x) [n,3]."""
    T, H, W = shape
    t, y, x = (where[:, axis].long().clamp(0, size - 1) for axis, size in enumerate((T, H, W)))
    return (t * H + y) * W + x


def _between(at: Tensor, where: Tensor, shape: tuple[int, int, int]) -> Tensor:
    """Positions [A,S] of the cells, read between cells at (t, y, x) [n,3] and rounded: int64 [A,n]."""
    low = where.floor()
    part = (where - low).double()
    total = torch.zeros(at.shape[0], len(where), dtype=torch.float64, device=at.device)
    for corner in range(8):
        step = where.new_tensor([corner >> 2 & 1, corner >> 1 & 1, corner & 1])
        share = torch.where(step.bool(), part, 1 - part).prod(1)
        total += share * at[:, _cell(low + step, shape)]
    return total.round().long()
