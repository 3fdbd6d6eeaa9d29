"""Methods between the blocks of vision towers, against the stock blocks called in a row on merged patches."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor

from fewtokens.core.method import Reducer
from fewtokens.core.plan import Plan
from fewtokens.core.tokens import Tokens
from fewtokens.llm import attach, compress
from tests.llm import families
from tests.llm import tiny as tiny_models
from tests.llm.test_tower_patches import MERGE, PACKED, STEPS, blocks_of, encode, example, grid_of, stock_rows, tower_of
from tests.llm.tiny import batch, prompt, ready, tiny

FAMILIES = ("qwen2_vl", "qwen3_vl", "video_llama_3", "llava_next_video", "internvl", "smolvlm")


@pytest.fixture(autouse=True)
def _no_grad():
    with torch.no_grad():
        yield


class Pair(Reducer):
    """Merges the first two tokens of each frame after the first block; keeps the cues of that block."""

    stage = "encoder"

    def __init__(self, cue: str = "keys") -> None:
        super().__init__()
        self.cue = cue
        self.seen: list[Tensor] = []

    @property
    def needs(self) -> tuple[str, ...]:
        return (self.cue,)

    def plan(self, tokens: Tokens, *, layer: int, depth: int, **cues: Tensor) -> Plan:
        self.seen.append(cues[self.cue])
        assert layer < depth
        if layer:
            return Plan.identity(tokens)
        labels = torch.arange(tokens.N).clamp(min=1) - 1
        return Plan.group(labels.expand(tokens.B, -1), tokens, tokens.N)


def members(family: str) -> Tensor:
    """The patches of each cell of a frame, int64 [S,4], in the order of the tower."""
    grid = grid_of(family)
    if family in PACKED:
        return torch.arange(grid.cells_per_frame * MERGE**2).unflatten(0, (-1, MERGE**2))
    raster = torch.arange(grid.cells_per_frame * MERGE**2).reshape(grid.H, MERGE, grid.W, MERGE)
    prefix = {"internvl": 1, "llava_next_video": 1}.get(family, 0)
    return raster.transpose(1, 2).reshape(-1, MERGE**2) + prefix


class Record:
    """The arguments and outputs of the blocks in a run of the stock encoder."""

    def __init__(self, family: str, inputs: dict[str, Any]) -> None:
        self.arguments: list[Any] = []
        self.outputs: list[Tensor] = []
        blocks = blocks_of(family)
        hooks = [block.register_forward_hook(self.add, with_kwargs=True) for block in blocks]
        try:
            encode(family, inputs)
        finally:
            for hook in hooks:
                hook.remove()

    def add(self, block: Any, args: Any, kwargs: Any, output: Any) -> None:
        self.arguments.append((args, kwargs))
        self.outputs.append(output)


def merged_rows(family: str, inputs: dict[str, Any]) -> Tensor:
    """The rows of the stock encoder whose blocks after the first run on merged patches; written out by hand."""
    record, blocks, patches = Record(family, inputs), blocks_of(family), members(family)
    state = record.outputs[0].clone()
    if family in PACKED:
        length = grid_of(family).cells_per_frame * MERGE**2
        first, second = (torch.cat([patches[n] + f * length for f in range(STEPS)]) for n in (0, 1))
    else:
        first, second = patches[0], patches[1]
    mean = (state[..., first, :] + state[..., second, :]) / 2
    state[..., first, :] = state[..., second, :] = mean
    states = [state]
    rest = torch.tensor([n for n in range(state.shape[-2]) if n not in set(second.tolist())])
    x = state[..., rest, :]
    for block, (_, kwargs) in zip(blocks[1:], record.arguments[1:], strict=True):
        if family in PACKED:
            places = tuple(part[rest] for part in kwargs["position_embeddings"])
            borders = torch.arange(STEPS + 1, dtype=torch.int32) * (len(rest) // STEPS)
            x = block(x, cu_seqlens=borders, position_embeddings=places)
        else:
            x = block(x) if family == "internvl" else block(x, None)
        full = state.clone()
        full[..., rest, :] = x
        full[..., second, :] = full[..., first, :]
        states.append(full)
    hooks = [
        block.register_forward_hook(lambda *_, full=full: full, prepend=True)
        for block, full in zip(blocks, states, strict=True)
    ]
    try:
        return stock_rows(family, inputs)
    finally:
        for hook in hooks:
            hook.remove()


@pytest.mark.parametrize("family", [*FAMILIES, "qwen2_5_vl"])
def test_merging_nothing_is_bit_equal_to_stock(family):
    model, one = tiny(family), example(family)
    expected = model(**one.inputs).logits
    with attach(model, "tome_in_encoder(r=0)", items=one.items) as few:
        assert torch.equal(few(**one.inputs).logits, expected)


@pytest.mark.parametrize("family", FAMILIES)
def test_merged_patches_equal_a_recomputation(family):
    one, grid = example(family), grid_of(family)
    tokens = compress(tiny(family), one.inputs, [Pair()], items=one.items).tokens[0]
    per_frame = grid.cells_per_frame
    cells = [cell for cell in range(grid.cells) if cell % per_frame != 1]
    rows = merged_rows(family, one.inputs)
    torch.testing.assert_close(tokens.features[0], rows[cells], rtol=0, atol=5e-6)
    assert (rows - stock_rows(family, one.inputs))[cells].abs().max() > 1e-3
    first = torch.arange(STEPS) * (per_frame - 1)
    assert tokens.sizes[0, first].tolist() == [2] * STEPS and int(tokens.sizes.sum()) == grid.cells
    assert torch.equal(tokens.assignment[0, ::per_frame], tokens.assignment[0, 1::per_frame])


@pytest.mark.parametrize("family", ["qwen3_vl", "internvl", "smolvlm"])
def test_cues_are_those_of_the_block(family):
    one, block = example(family), blocks_of(family)[0]
    args, kwargs = Record(family, one.inputs).arguments[0]
    hidden = args[0] if args else kwargs["hidden_states"]
    after = Record(family, one.inputs).outputs[0]
    norm = {"qwen3_vl": "norm1", "internvl": "layernorm_before"}.get(family, "layer_norm1")
    x = getattr(block, norm)(hidden)
    keys = block.attn.qkv(x).chunk(3, -1)[1] if family == "qwen3_vl" else getattr(
        block, "attention" if family == "internvl" else "self_attn"
    ).k_proj(x)  # fmt: skip
    keys = keys.unflatten(-1, (2, -1)).mean(-2)  # of 2 heads
    before_mlp: list[Tensor] = []
    name = {"qwen3_vl": "norm2", "internvl": "layernorm_after"}.get(family, "layer_norm2")
    hook = getattr(block, name).register_forward_pre_hook(lambda _, inputs: before_mlp.append(inputs[0]))
    try:
        encode(family, one.inputs)
    finally:
        hook.remove()
    shift = (after - before_mlp[0]).norm(dim=-1, keepdim=True)
    for cue, values in (("keys", keys), ("shift", shift)):
        method = Pair(cue)
        compress(tiny(family), one.inputs, [method], items=one.items)
        values = values.reshape(STEPS, -1, values.shape[-1])[:, members(family)].mean(2)
        torch.testing.assert_close(method.seen[0], values if cue == "keys" else values[..., 0], rtol=1e-5, atol=1e-6)


SPECS = (
    "tome_in_encoder(keep=0.5)",
    "merge_windows_in_encoder(keep=0.5, window=2)",
    "representation_shift_in_encoder(keep=0.5)",
    "vid_tldr(keep=0.5, by='shift')",
    "tome_in_encoder(keep=0.7) | kmeans(keep=3)",
)


@pytest.mark.parametrize("spec", SPECS)
@pytest.mark.parametrize("family", ["qwen3_vl", "llava_next_video"])
def test_later_blocks_process_fewer_patches(family, spec):
    model, one = tiny(family), example(family)
    counts: list[int] = []
    hooks = [
        block.register_forward_hook(lambda _, args, output: counts.append(args[0].numel() // args[0].shape[-1]))
        for block in blocks_of(family)
    ]
    try:
        with attach(model, spec, items=one.items) as few:
            logits = few(**one.inputs).logits
    finally:
        for hook in hooks:
            hook.remove()
    tokens, grid = few.last.tokens[0], grid_of(family)
    prefix = 1 if family == "llava_next_video" else 0
    assert counts[0] == STEPS * (grid.cells_per_frame * MERGE**2 + prefix)
    assert counts[-1] < counts[0]
    assert torch.isfinite(logits).all()
    if "kmeans" in spec:
        assert tokens.N == 3
    elif not spec.startswith("merge_windows"):
        assert STEPS * (grid.cells_per_frame // 2) == tokens.N


@pytest.mark.parametrize("family", ["qwen3_vl", "internvl"])
def test_a_batch_equals_its_prompts(family):
    model, spec = tiny(family), "tome_in_encoder(keep=0.5)"
    prompts = [prompt(family, ("text", 2), ("video", STEPS), ("text", count), seed=count) for count in (3, 5)]
    both = batch(family, *prompts)
    short = compress(model, both.inputs, spec, items=both.items)
    for one, tokens in zip(prompts, short.tokens, strict=True):
        alone = compress(model, one.inputs, spec, items=one.items).tokens[0]
        assert torch.equal(alone.assignment, tokens.assignment)
        torch.testing.assert_close(tokens.features, alone.features, rtol=0, atol=2e-6)


@pytest.mark.parametrize(("family", "reason"), [("llava_onevision", "its rows share patches")])
def test_towers_in_which_nothing_can_be_merged(family, reason):
    one = example(family)
    message = f"acts between the blocks of a vision tower, which that of {family} does not support: .*{reason}"
    with pytest.raises(ValueError, match=message):
        compress(tiny(family), one.inputs, "tome_in_encoder(keep=0.5)", items=one.items)


# Towers with windows: groups of 3 x 3 cells of a frame, of which windows have up to 2 x 2.
ROWS = COLUMNS = 3
WINDOWS = ([0, 1, 3, 4], [2, 5], [6, 7], [8])


@pytest.fixture
def windowed(monkeypatch) -> Any:
    """Qwen2.5-VL whose second and last blocks attend to whole frames, and its example."""
    import transformers as hf

    monkeypatch.setattr(tiny_models, "SHAPE", (ROWS, COLUMNS))
    config = copy.deepcopy(tiny("qwen2_5_vl").config)
    config.vision_config.depth, config.vision_config.fullatt_block_indexes = 4, [1, 3]
    torch.manual_seed(3)
    model = hf.Qwen2_5_VLForConditionalGeneration(config)
    for parameter in model.parameters():
        if parameter.ndim > 1:
            parameter.mul_(3)
    return ready(model), prompt("qwen2_5_vl", ("text", 3), ("video", STEPS), ("text", 4))


def merged_in_windows(model: Any, inputs: dict[str, Any]) -> tuple[Tensor, Tensor]:
    """Rows of the stock tower, and of its blocks called in a row with the first two cells of each window merged."""
    tower, calls = model.base_model.visual, []
    hooks = [
        block.register_forward_hook(lambda _, args, kwargs, output: calls.append((args, kwargs)), with_kwargs=True)
        for block in tower.blocks
    ]
    stock = tower(inputs["pixel_values_videos"], grid_thw=inputs["video_grid_thw"]).pooler_output
    for hook in hooks:
        hook.remove()
    order = [frame * 9 + cell for frame in range(STEPS) for window in WINDOWS for cell in window]

    def patches(cells: list[int]) -> Tensor:
        """The rows of the patches of cells in the order of the windows."""
        return torch.tensor([4 * order.index(cell) + n for cell in cells for n in range(4)])

    pairs = [(frame * 9 + window[0], frame * 9 + window[1]) for frame in range(STEPS) for window in WINDOWS[:3]]
    first, second = patches([pair[0] for pair in pairs]), patches([pair[1] for pair in pairs])
    state = tower.blocks[0](calls[0][0][0], **calls[0][1])
    state[first] = state[second] = (state[first] + state[second]) / 2
    left = [cell for cell in order if cell not in {pair[1] for pair in pairs}]
    rest, x = patches(left), state[patches(left)]
    for number, block in enumerate(tower.blocks[1:], start=1):
        lengths = [len(left) // STEPS] * STEPS if number in (1, 3) else [3, 1, 1, 1] * STEPS
        borders = torch.tensor([0, *lengths]).cumsum(0).int() * 4
        places = tuple(part[rest] for part in calls[number][1]["position_embeddings"])
        x = block(x, cu_seqlens=borders, position_embeddings=places)
    full = torch.empty_like(state)
    full[rest] = x
    full[second] = full[first]
    return stock, tower.merger(full)[torch.tensor(order).argsort()]


def test_merged_patches_of_windows_equal_a_recomputation(windowed):
    model, one = windowed
    stock, rows = merged_in_windows(model, one.inputs)
    method = Pair()
    (tokens,) = compress(model, one.inputs, [method]).tokens
    cells = [cell for cell in range(STEPS * 9) if cell % 9 not in (1, 5, 7)]
    torch.testing.assert_close(tokens.features[0], rows[cells], rtol=0, atol=5e-6)
    assert (rows - stock)[cells].abs().max() > 1e-3
    assert tokens.sizes[0].tolist() == [2, 2, 1, 1, 2, 1] * STEPS
    logits = model(**one.inputs).logits
    with attach(model, "tome_in_encoder(r=0)") as few:
        assert torch.equal(few(**one.inputs).logits, logits)


@pytest.mark.parametrize("spec", [*SPECS[:1], "tome_in_encoder(keep='5/frame')", *SPECS[2:]])
def test_budgets_of_windows(windowed, spec):
    """Each window keeps a share of the budget of its frame by its cells, and a token stays in its window."""
    model, one = windowed
    counts: list[int] = []
    hooks = [
        block.register_forward_hook(lambda _, args, output: counts.append(len(args[0])))
        for block in model.base_model.visual.blocks
    ]
    try:
        with attach(model, spec) as few:
            assert torch.isfinite(few(**one.inputs).logits).all()
    finally:
        for hook in hooks:
            hook.remove()
    (tokens,) = few.last.tokens
    assert counts[0] == STEPS * 9 * 4 and counts == sorted(counts, reverse=True)
    if "kmeans" in spec:
        assert tokens.N == 3
        return
    budget = 5 if "5/frame" in spec else 4
    assert STEPS * budget == tokens.N
    for frame in tokens.assignment[0].unflatten(0, (STEPS, -1)):
        in_window = [set(frame[window].tolist()) - {-1} for window in WINDOWS]
        assert sum(map(len, in_window)) == len(set().union(*in_window)) == budget
        assert [len(own) for own in in_window] == ([2, 1, 1, 1] if budget == 5 else [1, 1, 1, 1])


def test_a_window_keeps_at_least_one_token(windowed):
    model, one = windowed
    message = r"tome_in_encoder\(keep=0.3\) keeps 2 tokens of a frame, but the vision tower attends within 4 windows"
    with pytest.raises(ValueError, match=message):
        compress(model, one.inputs, "tome_in_encoder(keep=0.3)")


def test_images_with_a_video_in_one_tower():
    one = prompt("internvl", ("text", 2), ("image",), ("video", STEPS), ("text", 2))
    with pytest.raises(ValueError, match="the prompt also has images"):
        compress(tiny("internvl"), one.inputs, "tome_in_encoder(keep=0.5)", items=one.items)
    one = prompt("qwen3_vl", ("text", 2), ("image",), ("video", STEPS), ("text", 2))
    short = compress(tiny("qwen3_vl"), one.inputs, "tome_in_encoder(keep=0.5)", items=one.items)
    assert short.tokens[0].N == STEPS * 3


@pytest.mark.parametrize("family", ["qwen3_vl", "vipllava"])
def test_rows_of_earlier_blocks_are_averaged(family, monkeypatch):
    """DeepStack, and features of several layers side by side, are of patches that were not all merged yet."""
    from fewtokens.llm.tower_merging import TowerMerging

    seen: list[Tensor] = []
    plan = TowerMerging.plan

    def record(self: TowerMerging, frames: slice, rows: Any) -> Any:
        seen.extend(rows)
        return plan(self, frames, rows)

    monkeypatch.setattr(TowerMerging, "plan", record)
    model, one = families.build(family), families.prompt(family, ("text", 3), ("video", 4), ("text", 3))
    with torch.no_grad():
        short = compress(model, one.inputs, "tome_in_encoder(r=1)", items=one.items)
    assignment = short.tokens[0].assignment[0]
    packed = short.inputs["mm_encoder_outputs"]
    (outputs,) = packed.values()
    features = outputs.pooler_output
    found = [torch.cat(list(features)).flatten(0, -2), *(layer for layer in outputs.get("deepstack_features") or ())]
    found = [torch.cat(list(part)) if isinstance(part, list) else part for part in found]
    assert len(found) == len(seen)
    unequal = 0
    for rows, out in zip(seen, found, strict=True):
        for token in range(len(out)):
            own = rows[assignment == token]
            unequal += int(not torch.equal(own, own[:1].expand_as(own)))
            torch.testing.assert_close(out[token], own.mean(0), rtol=1e-5, atol=1e-6)
    assert unequal


def test_a_prompt_with_images_alone_is_left_whole():
    """Also of families whose images are tiles, and that take videos as images."""
    for family in ("llava", "llava_next"):
        one = families.prompt(family, ("text", 4), ("image",), ("text", 3))
        with torch.no_grad():
            short = compress(families.build(family), one.inputs, "tome_in_encoder(r=1)", items=one.items)
        assert short.inputs["input_ids"].shape == one.inputs["input_ids"].shape


def test_hooks_are_removed():
    def count() -> int:
        return sum(len(m._forward_pre_hooks) + len(m._forward_hooks) for m in tower_of("qwen3_vl").modules())

    before = count()
    compress(tiny("qwen3_vl"), example("qwen3_vl").inputs, "tome_in_encoder(keep=0.5)")
    assert count() == before
