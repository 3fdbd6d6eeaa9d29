"""Patches left out in vision towers, against the stock towers.

The oracle of a packed tower is the full tower of transformers, which is given the borders of segments, so that kept and
dropped patches of a frame do not attend to each other. The oracle of a tower of frames is its own layers, called in a
row on the kept patches of one frame.
"""

from __future__ import annotations

import inspect
import itertools
import re
import warnings
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from fewtokens.core.grid import Grid
from fewtokens.core.method import Reducer
from fewtokens.core.pipeline import Pipeline
from fewtokens.core.plan import Plan
from fewtokens.core.tokens import Tokens
from fewtokens.llm import attach, compress
from fewtokens.llm import families as works
from fewtokens.llm.backends.base import backend_of
from fewtokens.llm.tower_patches import PatchChoice, cells_read, patches_of_cells, require_tower, skip_patches
from fewtokens.llm.tower_run import TowerMethods, split_rows
from tests.llm import families as generic
from tests.llm.tiny import FAMILIES, Prompt, batch, prompt, tiny

PACKED = ("qwen2_vl", "qwen2_5_vl", "qwen3_vl", "video_llama_3")
FRAMES = tuple(family for family in FAMILIES if family not in PACKED)
STEPS = 3
MERGE = 2


@pytest.fixture(autouse=True)
def _no_grad():
    with torch.no_grad():
        yield


class Chosen(Reducer):
    """Keeps the cells of a list; of another one in videos that are shorter than three frames."""

    stage = "pixels"

    def __init__(self, cells: tuple[int, ...], short: tuple[int, ...] = ()) -> None:
        super().__init__()
        self.cells, self.short = cells, short

    @property
    def needs(self) -> tuple[str, ...]:
        return ("pixels",)

    def plan(self, tokens: Tokens, *, pixels: Tensor) -> Plan:
        assert pixels.shape[:2] == (1, tokens.N) and 0 <= pixels.min() <= pixels.max() <= 1
        kept = torch.zeros(1, tokens.N, dtype=torch.bool)
        kept[0, list(self.short if tokens.grid.T < STEPS else self.cells)] = True
        return Plan.keep(kept)


def example(family: str) -> Prompt:
    return prompt(family, ("text", 3), ("video", STEPS), ("text", 4))


def grid_of(family: str) -> Grid:
    return compress(tiny(family), example(family).inputs, "", items=example(family).items).tokens[0].grid


def half(family: str) -> list[int]:
    """Half of the cells; in Qwen2.5-VL a window of frame 1 is emptied."""
    grid = grid_of(family)
    cells = torch.randperm(grid.cells, generator=torch.Generator().manual_seed(1))[: grid.cells // 2]
    last_column = 1 * grid.cells_per_frame + torch.arange(grid.H) * grid.W + grid.W - 1
    return sorted(set(cells.tolist()) - set(last_column.tolist()) | {0, grid.cells_per_frame})


def module_name(family: str) -> str:
    return {"qwen2_vl": "visual", "qwen2_5_vl": "visual", "qwen3_vl": "visual", "internvl": "vision_tower"}.get(
        family, "vision_model" if family in ("smolvlm", "video_llama_3") else "vision_tower"
    )


def tower_of(family: str) -> Any:
    return getattr(tiny(family).base_model, module_name(family))


def blocks_of(family: str) -> list[Any]:
    """The blocks of the stock tower: its list of layers."""
    lists = (module for module in tower_of(family).modules() if isinstance(module, torch.nn.ModuleList))
    return list(next(blocks for blocks in lists if len(blocks) in (2, 3)))


def encode(family: str, inputs: dict[str, Any]) -> Any:
    """The output of the stock encoder."""
    base = tiny(family).base_model
    if family in ("internvl", "smolvlm"):
        return base.get_image_features(inputs["pixel_values"], return_dict=True)
    names = ("pixel_values_videos", "video_grid_thw", "video_merge_sizes")
    return base.get_video_features(**{name: inputs[name] for name in names if name in inputs}, return_dict=True)


def generic_rows(model: Any, one: Any) -> Tensor:
    """The rows of the videos of a prompt from the stock encoder of any family."""
    names = inspect.signature(model.base_model.get_video_features).parameters
    inputs = {name: value for name, value in one.inputs.items() if name in names}
    output = model.base_model.get_video_features(**inputs, return_dict=True)
    return torch.cat([rows.flatten(0, -2) for rows in output.pooler_output])


def stock_rows(family: str, inputs: dict[str, Any]) -> Tensor:
    """The cells of the stock encoder [S,D]."""
    rows = torch.cat([entry.flatten(0, -2) for entry in encode(family, inputs).pooler_output])
    return rows[:-1] if family == "llava_onevision" else rows


def reduced(family: str, cells: list[int], **options: Any) -> Tokens:
    one = example(family)
    short = compress(tiny(family), one.inputs, [Chosen(tuple(cells))], items=one.items, **options)
    tokens = short.tokens[0]
    assert tokens.cell[0].tolist() == cells
    return tokens


def segmented(family: str, inputs: dict[str, Any], cells: list[int], *, shift: int = 0) -> tuple[Tensor, list[Tensor]]:
    """Rows and DeepStack rows [S,D] of the stock tower with kept and dropped patches in separate segments.

    With `shift` positions are those of other patches, as if the kept ones formed a smaller grid.
    """
    from transformers.vision_utils import (
        get_vision_interpolation_indices_and_weights,
        get_vision_position_ids,
        get_vision_window_index,
    )

    tower, grid = tower_of(family), inputs["video_grid_thw"]
    (t, h, w), unit = grid[0].tolist(), MERGE**2
    per_frame = h * w // unit
    kept = torch.zeros(t * per_frame, dtype=torch.bool)
    kept[cells] = True

    def split(groups: list[int]) -> list[list[int]]:
        parts = [group for group in groups if kept[group]], [group for group in groups if not kept[group]]
        return [part for part in parts if part]

    segments = [part for n in range(t) for part in split(list(range(n * per_frame, (n + 1) * per_frame)))]
    order = torch.tensor([group for part in segments for group in part])
    patches = (order[:, None] * unit + torch.arange(unit)).flatten()
    places = patches.roll(shift)

    def borders(lengths: list[int]) -> Tensor:
        return F.pad((torch.tensor(lengths) * unit).cumsum(0), (1, 0)).int()

    merge = inputs["video_merge_sizes"] if family == "video_llama_3" else MERGE
    given: dict[str, Any] = {
        "cu_seqlens": borders([len(part) for part in segments]),
        "position_ids": get_vision_position_ids(grid, merge)[places],
    }
    if family == "qwen3_vl":
        indices, weights = get_vision_interpolation_indices_and_weights(
            grid, tower.num_grid_per_side, mode="bilinear", align_corners=True, spatial_merge_size=MERGE
        )
        given |= {"interp_indices": indices[places], "interp_weights": weights[places]}
    if family == "qwen2_5_vl":
        index, ends = get_vision_window_index(grid, MERGE, tower.window_size, tower.patch_size)
        windows = [index[a // unit : b // unit].tolist() for a, b in itertools.pairwise(ends)]
        # In layers over whole frames, the kept patches of a frame are one segment too.
        parts = [part for window in windows for part in split(window)]
        parts.sort(key=lambda part: (part[0] // per_frame, not kept[part[0]]))
        given["window_index"] = order.argsort()[torch.tensor([group for part in parts for group in part])]
        given["cu_window_seqlens"] = borders([len(part) for part in parts])
    values = inputs["pixel_values_videos"][patches]
    if family == "video_llama_3":
        seen: list[Tensor] = []
        hook = tower.post_layernorm.register_forward_hook(lambda _, args, output: seen.append(output))
        try:
            tower(values, grid, merge, **given)
        finally:
            hook.remove()
        full = torch.empty_like(seen[0])
        full[patches] = seen[0]
        return tiny(family).base_model.projector(tower.pixel_unshuffle(full, grid, merge)), []
    output = tower(values, grid_thw=grid, **given)
    back = order.argsort()
    return output.pooler_output[back], [layer[back] for layer in output.get("deepstack_features") or ()]


def kept_patches(family: str, cells: list[int]) -> Tensor:
    """The patches that kept cells cover, bool [T,h,w], for towers of frames; pooled 2 x 2, or 7 to 4 rows."""
    grid, tower = grid_of(family), tower_of(family)
    config = tower.config
    side = config.image_size if isinstance(config.image_size, int) else config.image_size[0]
    size = side // (config.patch_size if isinstance(config.patch_size, int) else config.patch_size[0])
    kept = torch.zeros(grid.T, size, size, dtype=torch.bool)
    step = size / grid.H
    for cell in cells:
        t, y, x = cell // grid.cells_per_frame, cell // grid.W % grid.H, cell % grid.W
        rows = [n for n in range(size) if n < (y + 1) * step and n + 1 > y * step]
        columns = [n for n in range(size) if n < (x + 1) * step and n + 1 > x * step]
        kept[t, rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1] = True
    return kept


def separate_frames(family: str, inputs: dict[str, Any], kept: Tensor) -> Tensor:
    """Rows [S,D] of the stock model whose tower has run on the kept patches of each frame separately."""
    tower = tower_of(family)
    layers = blocks_of(family)
    states: list[Tensor] = []

    def embed(_: Any, args: Any, kwargs: Any) -> None:
        states.append(args[0] if args else kwargs["hidden_states"])

    hook = layers[0].register_forward_pre_hook(embed, with_kwargs=True)
    try:
        encode(family, inputs)
    finally:
        hook.remove()
    embedded = states[0]
    prefix = embedded.shape[1] - kept[0].numel()
    outputs = [torch.zeros_like(embedded) for _ in range(len(layers) + 1)]
    for frame, patches in enumerate(kept.flatten(1)):
        rows = torch.cat([torch.arange(prefix), prefix + patches.nonzero().squeeze(1)])
        state = embedded[frame : frame + 1, rows]
        for number, layer in enumerate(layers):
            state = layer(state) if family == "internvl" else layer(state, None)
            outputs[number + 1][frame, rows] = state[0]

    def replace(_: Any, args: Any, output: Any) -> Any:
        last = outputs[-1]
        for name in ("post_layernorm", "layernorm"):
            last = getattr(tower, name)(last) if hasattr(tower, name) else last
        output["last_hidden_state"] = last
        if output.get("hidden_states") is not None:
            output["hidden_states"] = tuple(outputs)
        return output

    hook = tower.register_forward_hook(replace)
    try:
        return stock_rows(family, inputs)
    finally:
        hook.remove()


@pytest.mark.parametrize("family", FAMILIES)
def test_all_patches_kept_is_bit_equal_to_stock(family):
    model, one = tiny(family), example(family)
    expected = model(**one.inputs).logits
    grid = grid_of(family)
    with attach(model, [Chosen(tuple(range(grid.cells)))], items=one.items) as few:
        assert torch.equal(few(**one.inputs).logits, expected)


@pytest.mark.parametrize("family", FAMILIES)
def test_hooks_that_keep_all_are_bit_equal_to_stock(family):
    one, grid = example(family), grid_of(family)
    choice = PatchChoice()
    if family in PACKED:
        choice.patches.append(torch.ones(one.inputs["video_grid_thw"][0].tolist(), dtype=torch.bool))
        choice.merges.append(MERGE)
    else:
        choice.patches.append(torch.ones_like(kept_patches(family, list(range(grid.cells)))))
        choice.merges.append(None)
    with skip_patches(tiny(family), "video", choice, one.inputs.get("video_grid_thw")):
        rows = stock_rows(family, one.inputs)
    assert torch.equal(rows, stock_rows(family, one.inputs))


@pytest.mark.parametrize("family", FAMILIES)
def test_a_dropped_frame_changes_no_other(family):
    grid = grid_of(family)
    cells = [cell for cell in range(grid.cells) if cell // grid.cells_per_frame != 1]
    rows = stock_rows(family, example(family).inputs)
    assert torch.equal(reduced(family, cells).features[0], rows[cells])


@pytest.mark.parametrize("family", PACKED)
def test_half_of_the_groups_equals_the_segmented_tower(family):
    one, cells = example(family), half(family)
    tokens = reduced(family, cells)
    expected, deepstack = segmented(family, one.inputs, cells)
    assert torch.equal(tokens.features[0], expected[cells])
    # It is neither the full tower, nor one with positions of a smaller grid.
    assert (expected - stock_rows(family, one.inputs))[cells].abs().max() > 1e-3
    assert (segmented(family, one.inputs, cells, shift=1)[0] - expected)[cells].abs().max() > 1e-4
    short = compress(tiny(family), one.inputs, [Chosen(tuple(cells))], items=one.items)
    output = short.inputs["mm_encoder_outputs"]["video"]
    for got, layer in zip(output.get("deepstack_features") or [], deepstack, strict=True):
        assert torch.equal(got[0], layer[cells])


class Segments:
    """Hooks that give the blocks of a tower all patches, kept and dropped ones of a frame in separate segments."""

    def __init__(self, kept: Tensor) -> None:
        self.kept = kept

    def before(self, block: Any, args: Any, kwargs: Any) -> Any:
        borders = kwargs["cu_seqlens"].tolist()
        parts = [
            torch.arange(start, end)[self.kept[start:end] == side]
            for start, end in itertools.pairwise(borders)
            for side in (True, False)
        ]
        parts = [part for part in parts if len(part)]
        self.order = torch.cat(parts)
        ends = F.pad(torch.tensor([len(part) for part in parts]).cumsum(0), (1, 0)).to(kwargs["cu_seqlens"].dtype)
        places = tuple(part[..., self.order, :] for part in kwargs["position_embeddings"])
        return (args[0][..., self.order, :],), kwargs | {"cu_seqlens": ends, "position_embeddings": places}

    def after(self, block: Any, args: Any, output: Tensor) -> Tensor:
        return output[..., self.order.argsort(), :]


GENERIC = [
    family.folder for family in works.FAMILIES
    if family.works and family.folder in generic.folders() and "pixels" in backend_of(generic.build(family.folder)).cues
    and family.folder not in FAMILIES
]  # fmt: skip


@pytest.mark.parametrize("folder", GENERIC)
def test_families_without_a_file(folder):
    """A frame dropped and half of another one, in two videos; an emptied window where there are windows."""
    from fewtokens.llm.interface import vision_windows

    model = generic.build(folder)
    one = generic.prompt(folder, ("text", 2), ("video", 3), ("text", 2), ("video", 2), ("text", 3))
    full = generic_rows(model, one)
    # Of grids of 3 x (2 x 3) and 2 x (2 x 3) cells.
    first, second = (0, 1, 3, 4, 12, 13, 15), (0, 2, 3, 6, 9)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        short = compress(model, one.inputs, [Chosen(first, second)], items=one.items)
    kept = torch.zeros(18 + 12, dtype=torch.bool)
    kept[[*first, *(18 + cell for cell in second)]] = True
    grid = one.inputs["video_grid_thw"]
    unit = int(grid.prod(1).sum()) // len(kept)
    found = require_tower(model, "video")
    windows = vision_windows(found.module, grid)
    in_order = kept if windows is None else kept[windows[0]]
    segments = Segments(in_order.repeat_interleave(unit))
    hooks = [hook for block in found.blocks for hook in (
        block.register_forward_pre_hook(segments.before, with_kwargs=True), block.register_forward_hook(segments.after)
    )]  # fmt: skip
    try:
        expected = generic_rows(model, one)
    finally:
        for hook in hooks:
            hook.remove()
    features = torch.cat([tokens.features[0] for tokens in short.tokens])
    assert torch.equal(features, expected[kept])
    assert (features - full[kept]).abs().max() > 1e-4


@pytest.mark.parametrize("family", FRAMES)
def test_half_of_the_cells_equals_the_layers_on_kept_patches(family):
    one, cells = example(family), half(family)
    tokens = reduced(family, cells)
    expected = separate_frames(family, one.inputs, kept_patches(family, cells))
    assert torch.equal(tokens.features[0], expected[cells])
    assert (expected - stock_rows(family, one.inputs))[cells].abs().max() > 1e-3
    everything = separate_frames(family, one.inputs, torch.ones_like(kept_patches(family, cells)))
    torch.testing.assert_close(everything, stock_rows(family, one.inputs), rtol=0, atol=2e-6)


@pytest.mark.parametrize("family", FAMILIES)
def test_only_kept_patches_enter_the_blocks(family):
    cells = half(family)
    counts: list[int] = []
    block = blocks_of(family)[0]
    projection = next(m for name, m in block.named_modules() if name.rpartition(".")[2] in ("qkv", "q_proj"))
    hook = projection.register_forward_pre_hook(lambda _, args: counts.append(args[0].numel() // args[0].shape[-1]))
    try:
        reduced(family, cells)
    finally:
        hook.remove()
    if family in PACKED:
        assert sum(counts) == len(cells) * MERGE**2
    else:
        kept = kept_patches(family, cells)
        prefix = {"internvl": 1, "llava_next_video": 1}.get(family, 0)
        assert sum(counts) == int(kept.sum()) + prefix * int(kept.flatten(1).any(1).sum())


@pytest.mark.parametrize("family", ["qwen2_vl", "qwen2_5_vl", "qwen3_vl"])
def test_operations_follow_the_share_of_patches(family):
    cells = half(family)

    def operations(**options: Any) -> int:
        count = 0

        def enter(*_: Any) -> None:
            counter.__enter__()

        def leave(*_: Any) -> None:
            nonlocal count
            counter.__exit__(None, None, None)
            count += counter.get_total_flops()

        counter = FlopCounterMode(display=False)
        tower = tower_of(family)
        hooks = [tower.register_forward_pre_hook(enter), tower.register_forward_hook(leave)]
        try:
            # The counter misses the fused attention of the CPU.
            with sdpa_kernel(SDPBackend.MATH):
                reduced(family, cells, **options)
        finally:
            for hook in hooks:
                hook.remove()
        return count

    full = operations(tower="full")
    assert 0 < operations() <= (len(cells) / grid_of(family).cells + 0.05) * full


@pytest.mark.parametrize("family", ["qwen2_5_vl", "qwen3_vl", "llava_onevision", "smolvlm"])
def test_rlt_reads_the_first_cell_of_each_run(family):
    """A still video: runs as long as the video, encoded from its first frame."""
    one = example(family)
    name = "pixel_values" if family == "smolvlm" else "pixel_values_videos"
    values = one.inputs[name]
    if family in PACKED:
        still = values.unflatten(0, (STEPS, -1))[:1].expand(STEPS, -1, -1).flatten(0, 1)
        # Both frames of a tubelet.
        pixels = still.unflatten(1, (3, -1, 16))
        values = pixels[:, :, :1].expand_as(pixels).flatten(1).contiguous()
    else:
        values = values[:, :1].expand_as(values).contiguous()
    inputs = one.inputs | {name: values}
    short = compress(tiny(family), inputs, "rlt", items=one.items)
    tokens, per_frame = short.tokens[0], short.tokens[0].grid.cells_per_frame
    assert per_frame == tokens.N and (tokens.sizes == STEPS).all()
    assert torch.equal(tokens.features[0], stock_rows(family, inputs)[:per_frame])
    full = compress(tiny(family), inputs, "rlt", items=one.items, tower="full")
    assert torch.equal(full.tokens[0].features, tokens.features)


@pytest.mark.parametrize("family", ["qwen2_5_vl", "qwen3_vl", "internvl", "llava_onevision"])
def test_later_methods_receive_the_encoded_cells(family):
    one, cells = example(family), half(family)
    kept = reduced(family, cells)
    model = tiny(family)
    from fewtokens.core import registry

    chain = [Chosen(tuple(cells)), *registry.build("kmeans(keep=3)", dim=32)]
    with attach(model, chain, items=one.items) as few:
        logits = few(**one.inputs).logits
    tokens = few.last.tokens[0]
    assignment = tokens.assignment[0, cells]
    for token in range(3):
        mean = kept.features[0, assignment == token].mean(0)
        torch.testing.assert_close(tokens.features[0, token], mean, rtol=0, atol=1e-5)
    assert torch.isfinite(logits).all()


@pytest.mark.parametrize("family", ["qwen2_5_vl", "internvl"])
def test_a_batch_equals_its_prompts(family):
    model = tiny(family)
    prompts = [prompt(family, ("text", 2), ("video", STEPS), ("text", count), seed=count) for count in (3, 5)]
    both = batch(family, *prompts)
    short = compress(model, both.inputs, "visual_words(keep=0.5)", items=both.items)
    for one, tokens in zip(prompts, short.tokens, strict=True):
        alone = compress(model, one.inputs, "visual_words(keep=0.5)", items=one.items).tokens[0]
        assert torch.equal(alone.assignment, tokens.assignment)
        torch.testing.assert_close(tokens.features, alone.features, rtol=0, atol=2e-6)


def test_gradients_reach_the_tower():
    model, one = tiny("qwen2_5_vl"), example("qwen2_5_vl")
    labels = one.inputs["input_ids"].clone()
    labels[:, :-2] = -100
    with torch.enable_grad(), attach(model, [Chosen(tuple(half("qwen2_5_vl")))]) as few:
        few(**one.inputs, labels=labels).loss.backward()
    gradients = [parameter.grad for parameter in model.base_model.visual.parameters()]
    model.zero_grad(set_to_none=True)
    assert all(gradient is not None and torch.isfinite(gradient).all() for gradient in gradients)
    assert any(gradient.abs().max() > 0 for gradient in gradients)


@pytest.mark.parametrize("fails", [False, True])
def test_hooks_are_removed(fails, monkeypatch):
    def count() -> int:
        return sum(len(m._forward_pre_hooks) + len(m._forward_hooks) for m in tower_of("qwen2_vl").modules())

    before = count()
    if fails:
        monkeypatch.setattr(tower_of("qwen2_vl").merger, "forward", lambda x: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            reduced("qwen2_vl", [0, 1])
    else:
        reduced("qwen2_vl", [0, 1])
    assert count() == before


def test_a_tower_of_another_form_encodes_all(monkeypatch):
    monkeypatch.setattr("fewtokens.llm.tower._PROJECTIONS", ())
    with pytest.warns(UserWarning, match="vision tower of qwen2_vl encodes all patches: it has no blocks"):
        tokens = reduced("qwen2_vl", [1, 4])
    assert torch.equal(tokens.features[0], stock_rows("qwen2_vl", example("qwen2_vl").inputs)[[1, 4]])


def test_families_that_skip_do_not_warn():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for family in FAMILIES:
            reduced(family, half(family))


@pytest.mark.parametrize("family", ["llava_onevision", "qwen2_5_vl", "internvl"])
def test_images_are_encoded_in_full(family):
    one = prompt(family, ("text", 2), ("image",), ("video", STEPS), ("text", 2))
    cells = half(family)
    with warnings.catch_warnings(record=True) as raised:
        warnings.simplefilter("always")
        few = compress(tiny(family), one.inputs, [Chosen(tuple(cells))], items=one.items)
    (warning,) = raised
    assert re.fullmatch(
        r"1 image of \d+ tokens is left whole; pass images=True to reduce them too", str(warning.message)
    )
    full = compress(tiny(family), one.inputs, "", items=one.items)
    images, expected = (
        torch.cat(list(each.inputs["mm_encoder_outputs"]["image"].pooler_output)) for each in (few, full)
    )
    count = grid_of(family).cells_per_frame if family == "internvl" else len(expected)
    assert torch.equal(images[:count], expected[:count])
    assert few.tokens[0].cell[0].tolist() == cells
    assert not torch.equal(few.tokens[0].features[0], full.tokens[0].features[0, cells])


def test_another_name_for_the_tower_is_an_error():
    with pytest.raises(ValueError, match="tower must be one of kept, full, got 'half'"):
        compress(tiny("qwen2_vl"), example("qwen2_vl").inputs, "rlt", tower="half")


def test_which_methods_act_before_and_inside_the_tower():
    def of(spec: str, **options: Any) -> tuple[list[str], list[str]]:
        methods = TowerMethods.of(Pipeline(spec), **options)
        return [method.name for method in methods.before], [method.name for method in methods.inside]

    assert of("rlt | visual_words(keep=0.5) | kmeans(keep=4)") == (["rlt", "visual_words"], [])
    assert of("rlt | kmeans(keep=4)", tower="full") == ([], [])
    assert of("dtd(mode='pixel') | evs(keep=0.5)") == (["dtd"], [])
    assert of("dtd") == of("kmeans(keep=4)") == ([], [])
    assert of("tome_in_encoder(keep=0.5) | kmeans(keep=4)") == ([], ["tome_in_encoder"])
    # Attention is that of all patches.
    assert of("rlt | representation_shift(keep=4)") == ([], [])
    with pytest.raises(ValueError, match=r"tome_in_encoder .* cannot be combined with representation_shift"):
        of("tome_in_encoder(keep=0.5) | representation_shift(keep=4)")


def test_cells_that_plans_read():
    copies = Plan(torch.tensor([2]), 2, torch.tensor([[0, 0, 1, -1]]), torch.tensor([[1, 2]]))
    assert cells_read([copies], 4).tolist() == [False, True, True, False]
    means = Plan(torch.tensor([2]), 2, torch.tensor([[0, 0, 1, -1]]))
    assert cells_read([means], 4).tolist() == [True, True, True, False]
    second = Plan(torch.tensor([1]), 1, torch.tensor([[-1, 0]]), torch.tensor([[1]]))
    assert cells_read([copies, second], 4).tolist() == [False, False, True, False]
    assert cells_read([means, second], 4).tolist() == [False, False, True, False]
    padded = Plan(torch.tensor([1]), 3, torch.tensor([[-1, 0, -1]]), torch.tensor([[1, 0, 0]]))
    assert cells_read([padded], 3).tolist() == [False, True, False]
    assert cells_read([Plan(torch.tensor([1]), 1, weights=torch.rand(1, 1, 4))], 4).all()


@pytest.mark.parametrize(("patches", "cells"), [(27, 14), (24, 12), (7, 4), (7, 3), (6, 3)])
@pytest.mark.parametrize("pooling", ["bilinear", "mean"])
def test_patches_cover_what_cells_depend_on(patches, cells, pooling):
    generator = torch.Generator().manual_seed(0)
    chosen = torch.rand(1, cells, cells, generator=generator) < 0.1
    with torch.enable_grad():
        values = torch.randn(1, 1, patches, patches, generator=generator).requires_grad_()
        pooled = (
            F.interpolate(values, size=(cells, cells), mode="bilinear")
            if pooling == "bilinear"
            else F.adaptive_avg_pool2d(values, (cells, cells))
        )
        (gradient,) = torch.autograd.grad(pooled[0][chosen].sum(), values)
    covered = patches_of_cells(chosen, (1, patches, patches))
    assert not (gradient[0] != 0)[~covered].any()
    # At most one more patch on each side of a cell.
    assert covered.sum() <= chosen.sum() * (patches // cells + 2) ** 2


def test_time_is_pooled_too():
    chosen = torch.tensor([[[True]], [[False]]])
    assert patches_of_cells(chosen, (4, 2, 2)).flatten(1).all(1).tolist() == [True, True, False, False]


def test_rows_of_entries():
    assert split_rows([8, 16], 12) == [4, 8]
    assert split_rows([8, 16], 13) is None
