"""Methods between the blocks of vision towers, against the stock blocks called in a row on merged patches."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from fewtokens.core.method import Reducer
from fewtokens.core.plan import Plan
from fewtokens.core.tokens import Tokens
from fewtokens.llm import attach, compress
from tests.llm.test_tower_patches import MERGE, PACKED, STEPS, blocks_of, encode, example, grid_of, stock_rows, tower_of
from tests.llm.tiny import batch, prompt, tiny

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


@pytest.mark.parametrize("family", FAMILIES)
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


@pytest.mark.parametrize(
    ("family", "reason"), [("qwen2_5_vl", "attend within windows"), ("llava_onevision", "its rows share patches")]
)
def test_towers_in_which_nothing_can_be_merged(family, reason):
    one = example(family)
    message = f"acts between the blocks of a vision tower, which that of {family} does not support: .*{reason}"
    with pytest.raises(ValueError, match=message):
        compress(tiny(family), one.inputs, "tome_in_encoder(keep=0.5)", items=one.items)


def test_images_with_a_video_in_one_tower():
    one = prompt("internvl", ("text", 2), ("image",), ("video", STEPS), ("text", 2))
    with pytest.raises(ValueError, match="the prompt also has images"):
        compress(tiny("internvl"), one.inputs, "tome_in_encoder(keep=0.5)", items=one.items)
    one = prompt("qwen3_vl", ("text", 2), ("image",), ("video", STEPS), ("text", 2))
    short = compress(tiny("qwen3_vl"), one.inputs, "tome_in_encoder(keep=0.5)", items=one.items)
    assert short.tokens[0].N == STEPS * 3


def test_hooks_are_removed():
    def count() -> int:
        return sum(len(m._forward_pre_hooks) + len(m._forward_hooks) for m in tower_of("qwen3_vl").modules())

    before = count()
    compress(tiny("qwen3_vl"), example("qwen3_vl").inputs, "tome_in_encoder(keep=0.5)")
    assert count() == before
