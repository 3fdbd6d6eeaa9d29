"""The cues of vision towers, against queries and keys, and eager attention maps, of the stock models."""

from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from fewtokens.core import registry
from fewtokens.core.attention_rule import AttentionRule
from fewtokens.core.method import Method, Reducer
from fewtokens.core.pipeline import Pipeline
from fewtokens.core.plan import Plan
from fewtokens.core.tokens import Tokens
from fewtokens.llm import attach, backend_of, compress, tower
from tests.llm import tiny as tiny_models
from tests.llm.tiny import FAMILIES, Prompt, batch, grid_of, prompt, tiny

PACKED = ("qwen2_vl", "qwen2_5_vl", "qwen3_vl", "video_llama_3")
RASTER = tuple(family for family in FAMILIES if family not in PACKED)
# The layer that the language model reads.
USED = {"llava_next_video": 1, "qwen2_vl": 1, "qwen2_5_vl": 1, "qwen3_vl": 1}
HAS_CLASS = ("llava_next_video", "internvl")
STEPS = 3
CLOSE = {"rtol": 0, "atol": 1e-6}


class Probe(Reducer):
    """Keeps every token and records the cues."""

    def __init__(self, rule: AttentionRule = AttentionRule(), names: tuple[str, ...] = ("attention",)) -> None:
        super().__init__()
        self.rule, self.names = rule, names
        self.attention_rule = rule
        self.cues: dict[str, Tensor] = {}

    @property
    def needs(self) -> tuple[str, ...]:
        return self.names

    def plan(self, tokens: Tokens, **cues: Any) -> Plan:
        self.cues = {name: cue[0] for name, cue in cues.items()}
        return Plan.identity(tokens)


def measure(model: Any, example: Prompt, rule: AttentionRule = AttentionRule(), *needs: str) -> dict[str, Tensor]:
    probe = Probe(rule, needs or ("attention",))
    compress(model, example.inputs, Pipeline([probe]), items=example.items)
    return probe.cues


def video(family: str) -> Prompt:
    return prompt(family, ("text", 3), ("video", STEPS), ("text", 4))


def vision(model: Any) -> Any:
    names = ("vision_tower", "visual", "vision_model")
    return next(getattr(model.base_model, name) for name in names if hasattr(model.base_model, name))


def parts(model: Any) -> list[tuple[Any, Any]]:
    """The blocks of the vision tower, and their attention modules."""
    module = vision(model)
    blocks: Any = next(m for m in module.modules() if isinstance(m, torch.nn.ModuleList) and len(m) in (2, 3))
    names = ("self_attn", "attn", "attention")
    return [(block, next(getattr(block, name) for name in names if hasattr(block, name))) for block in blocks]


@contextmanager
def spy(model: Any) -> Iterator[dict[int, list[tuple[Tensor, Tensor, float]]]]:
    """Collects the queries [S,heads,n,d], keys and scales that each attention module passes to its kernel."""
    calls: dict[int, list[tuple[Tensor, Tensor, float]]] = {}
    numbers = {id(attention): number for number, (_, attention) in enumerate(parts(model))}
    real = ALL_ATTENTION_FUNCTIONS["sdpa"]

    def kernel(module: Any, query: Tensor, key: Tensor, *args: Any, scaling: float, **options: Any) -> Any:
        if id(module) in numbers:
            calls.setdefault(numbers[id(module)], []).append((query.detach(), key.detach(), scaling))
        return real(module, query, key, *args, scaling=scaling, **options)

    ALL_ATTENTION_FUNCTIONS["sdpa"] = kernel
    try:
        yield calls
    finally:
        ALL_ATTENTION_FUNCTIONS["sdpa"] = real


def stock(model: Any, family: str, example: Prompt) -> list[tuple[Tensor, Tensor, float, Tensor]]:
    """Queries and keys [S,heads,n,d] of the frames in the video, in the order of the tower, the scale, and which
    queries attend to which keys, bool [n,n], by layer."""
    with spy(model) as calls, torch.no_grad():
        modality = "image" if family in ("internvl", "smolvlm") else "video"
        names = ("pixel_values", "pixel_values_videos", "video_grid_thw", "video_merge_sizes")
        inputs = {name: example.inputs[name] for name in names if name in example.inputs}
        getattr(model.base_model, f"get_{modality}_features")(**inputs, return_dict=True)
    layers = []
    for number in sorted(calls):
        q, k = (torch.cat([call[which] for call in calls[number]], -2) for which in (0, 1))
        if family in PACKED:  # all frames have the same size
            q, k = (x[0].unflatten(1, (STEPS, -1)).transpose(0, 1) for x in (q, k))
        same = torch.ones(q.shape[2], q.shape[2], dtype=torch.bool)
        if family in PACKED:  # windows of a frame are separate calls
            lengths = torch.tensor([call[0].shape[2] for call in calls[number][: len(calls[number]) // STEPS]])
            window = torch.arange(len(lengths)).repeat_interleave(lengths)
            same = window[:, None] == window
        layers.append((q, k, calls[number][0][2], same))
    return layers


def to_rows(family: str, values: Tensor) -> Tensor:
    """Values of patches without class token [T,n,c], in the order of the tower, as rows [T*H*W,c]."""
    _, H, W = grid_of(family, STEPS)
    if family in PACKED:
        rows = values.unflatten(1, (H * W, 4)).mean(2)
        if family == "qwen2_5_vl":  # windows of 2 x 2 groups
            order = [
                row * W + column
                for top in range(0, H, 2)
                for left in range(0, W, 2)
                for row in range(top, min(top + 2, H))
                for column in range(left, min(left + 2, W))
            ]
            rows = rows[:, torch.tensor([order.index(group) for group in range(H * W)])]
        return rows.flatten(0, 1)
    side = math.isqrt(values.shape[1])
    image = values.unflatten(1, (side, side))
    if family == "llava_onevision":
        resized = F.interpolate(image.permute(0, 3, 1, 2), (H, W), mode="bilinear", align_corners=False)
        return resized.permute(0, 2, 3, 1).flatten(0, 2)
    return image.unflatten(1, (H, 2)).unflatten(3, (W, 2)).mean((2, 4)).flatten(0, 2)


def formula(family: str, layers: list[Any], rule: AttentionRule) -> Tensor:
    """The cue "attention" of a rule, from full attention maps."""
    q, k, scale, same = layers[len(layers) - 1 if rule.layer == "last" else USED.get(family, 2) + 1 + int(rule.layer)]
    if rule.heads == "joined":
        q, k = (x.transpose(1, 2).flatten(2)[:, None] for x in (q, k))
        scale = q.shape[-1] ** -0.5
    first = int(family in HAS_CLASS)
    query = rule.queries[0] if rule.queries[0] != "class" or first else "received"
    if query == "mean_query":
        mean = q[:, :, first:].mean(2)  # [T,heads,d]
        heads = [to_rows(family, k[:, head, first:]).unflatten(0, (STEPS, -1)) for head in range(k.shape[1])]
        logits = [torch.einsum("td,tnd->tn", mean[:, head], keys) * scale for head, keys in enumerate(heads)]
        return torch.stack([part.softmax(1) for part in logits]).mean(0).flatten()
    maps = (q @ k.transpose(2, 3) * scale).masked_fill(~same, -torch.inf).softmax(3)
    received = maps[:, :, 0].mean(1) if query == "class" else maps.mean((1, 2))
    return to_rows(family, received[:, first:, None])[:, 0]


@pytest.fixture(params=FAMILIES)
def family(request, monkeypatch) -> str:
    # Odd sides, so that the windows at the border of Qwen2.5-VL are smaller.
    monkeypatch.setattr(tiny_models, "SHAPE", (5, 3))
    return request.param


RULES = (
    AttentionRule(),
    AttentionRule(("received",), -1),
    AttentionRule(("received",), -2),
    AttentionRule(("mean_query",), -1),
    AttentionRule(layer="last", heads="joined"),
)


def test_attention_is_that_of_the_stock_model(family):
    model, example = tiny(family), video(family)
    layers = stock(model, family, example)
    expected = {rule: formula(family, layers, rule) for rule in RULES}
    for rule in RULES:
        actual = measure(model, example, rule)["attention"]
        torch.testing.assert_close(actual, expected[rule], **CLOSE)
        for other in RULES:  # another layer, query or rule of heads is not the same
            is_same = other.queries[0] == "class" and family not in HAS_CLASS and other[1:] == rule[1:]
            if other != rule and not is_same:
                same_here = torch.equal(expected[other], expected[rule])
                assert same_here or float((actual - expected[other]).abs().max()) > 1e-5
    different = {expected[rule].numpy().tobytes() for rule in RULES}
    assert len(different) == (5 if family in HAS_CLASS else 4)


@pytest.mark.parametrize("family", RASTER)
def test_attention_is_that_of_the_eager_maps_of_the_tower(family):
    model, example = tiny(family), video(family)
    eager = copy.deepcopy(vision(model))
    for module in eager.modules():
        if hasattr(module, "config"):
            module.config._attn_implementation = "eager"
    pixels = example.inputs.get("pixel_values_videos", example.inputs.get("pixel_values"))
    with torch.no_grad():
        maps = eager(pixels.reshape(-1, *pixels.shape[-3:]), output_attentions=True).attentions
    first = int(family in HAS_CLASS)
    for number, layer in enumerate(maps):
        received = to_rows(family, layer.mean((1, 2))[:, first:, None])[:, 0]
        actual = measure(model, example, AttentionRule(("received",), number))["attention"]
        torch.testing.assert_close(actual, received, **CLOSE)
        neighbor = measure(model, example, AttentionRule(("received",), (number + 1) % 3))["attention"]
        assert float((actual - neighbor).abs().max()) > 1e-4
        if first:
            row = to_rows(family, layer[:, :, 0, 1:].mean(1)[..., None])[:, 0]
            actual = measure(model, example, AttentionRule(("class",), number))["attention"]
            torch.testing.assert_close(actual, row, **CLOSE)


def test_a_row_has_the_patches_that_its_features_come_from(family, monkeypatch):
    """Found by gradients from each row of features back to the block that the model reads."""
    model, example = tiny(family), video(family)
    backend, cells = backend_of(model), math.prod(grid_of(family, STEPS))
    states: list[Tensor] = []

    def keep(module, args, output):
        states.append(output[0] if isinstance(output, tuple) else output)

    block, _ = parts(model)[USED.get(family, 2)]
    hook = block.register_forward_hook(keep)
    try:
        modality = "image" if family in ("internvl", "smolvlm") else "video"
        outputs = backend.encode(model, modality, example.inputs)
    finally:
        hook.remove()
    rows = torch.cat([part.flatten(0, -2) for part in outputs.pooler_output])[:cells]
    weights = torch.randn(rows.shape[1], generator=torch.Generator().manual_seed(0))
    gradients = [torch.autograd.grad((row * weights).sum(), states[0], retain_graph=True)[0] for row in rows]
    expected = torch.stack([gradient.flatten(0, -2).abs().sum(1) for gradient in gradients]) > 0

    def number(module: Any, x: Tensor) -> tuple[Tensor, Tensor]:
        """Keys that number the patches."""
        count = x.shape[:-1].numel()
        return x[..., None, :], torch.eye(count).reshape(*x.shape[:-1], 1, count)

    monkeypatch.setattr(tower, "project", number)
    actual = measure(model, example, AttentionRule(), "keys")["keys"]
    assert torch.equal(actual > 0, expected)
    assert int(expected.sum(1).min()) >= 4
    torch.testing.assert_close(actual.sum(1), torch.ones(cells))


def test_keys_and_shift_are_those_of_the_stock_model(family):
    model, example = tiny(family), video(family)
    block, attention = parts(model)[USED.get(family, 2)]
    found: dict[str, Tensor] = {}

    def keep(name):
        def hook(module, args, kwargs, output):
            found.setdefault(f"{name} in", args[0] if args else kwargs["hidden_states"])
            found[name] = (output[0] if isinstance(output, tuple) else output).detach()

        return hook

    projection = attention.qkv if hasattr(attention, "qkv") else attention.k_proj
    named = {"block": block, "attention": attention, "keys": projection}
    hooks = [module.register_forward_hook(keep(name), with_kwargs=True) for name, module in named.items()]
    try:
        stock(model, family, example)
    finally:
        for hook in hooks:
            hook.remove()
    heads = attention.num_heads
    keys = found["keys"].chunk(3, -1)[1] if hasattr(attention, "qkv") else found["keys"]
    if family == "internvl":
        keys = attention.k_norm(keys)
    joined, keys = keys.detach(), keys.unflatten(-1, (heads, -1)).mean(-2).detach()
    after_attention = found["block in"] + getattr(block, "lambda_1", 1) * found["attention"]
    shift = (found["block"] - after_attention).norm(dim=-1, keepdim=True)
    shape = (STEPS, -1)
    keys, joined, shift = (x.unflatten(0, shape) if x.ndim == 2 else x for x in (keys, joined, shift))
    first = int(family in HAS_CLASS)
    actual = measure(model, example, AttentionRule(), "keys", "shift")
    torch.testing.assert_close(actual["keys"], to_rows(family, keys[:, first:]), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(actual["shift"], to_rows(family, shift[:, first:])[:, 0], rtol=1e-5, atol=1e-5)
    actual = measure(model, example, AttentionRule(heads="joined"), "keys")
    torch.testing.assert_close(actual["keys"], to_rows(family, joined[:, first:]), rtol=1e-5, atol=1e-5)


def test_norms_of_queries_and_keys(monkeypatch):
    """InternViT normalizes queries and keys before it splits them into heads."""
    import transformers as hf

    config = copy.deepcopy(tiny("internvl").config)
    config.vision_config.use_qk_norm = True
    torch.manual_seed(1)
    model = hf.InternVLForConditionalGeneration(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "q_norm" in name or "k_norm" in name:
                parameter.uniform_(0.5, 3)
    example = video("internvl")
    expected = formula("internvl", stock(model, "internvl", example), AttentionRule())
    torch.testing.assert_close(measure(model, example)["attention"], expected, **CLOSE)
    assert float((measure(tiny("internvl"), example)["attention"] - expected).abs().max()) > 1e-4

    class PerHead(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.qkv, self.num_heads = torch.nn.Linear(12, 36), 3
            self.q_norm, self.k_norm = torch.nn.LayerNorm(4), torch.nn.LayerNorm(4)

    module, x = PerHead(), torch.randn(2, 5, 12)
    q, k = tower.project(module, x)
    raw = module.qkv(x).reshape(2, 5, 3, 3, 4)
    torch.testing.assert_close(q, module.q_norm(raw[:, :, 0]))
    torch.testing.assert_close(k, module.k_norm(raw[:, :, 1]))


def test_a_patch_with_a_large_key_is_found_across_windows(monkeypatch):
    """Qwen2.5-VL processes patches window by window: each row must get the attention of its own patches."""
    monkeypatch.setattr(tiny_models, "SHAPE", (5, 3))
    model, example = copy.deepcopy(tiny("qwen2_5_vl")), video("qwen2_5_vl")
    visual = model.base_model.visual
    blocks = visual.blocks
    with torch.no_grad():
        for part in (blocks[0].attn.proj, blocks[0].mlp.down_proj):  # block 0 passes its input on
            part.weight.zero_()
            part.bias.zero_()
        width = blocks[1].attn.qkv.weight.shape[1]
        blocks[1].attn.qkv.weight[width : 2 * width, 0] = 30.0  # channel 0 makes keys large
    for row in range(STEPS * 5 * 3):

        def mark(module, args, output, row=row):
            output = output.clone()
            output[:, 0] = 0
            output[4 * row + 2] = F.one_hot(torch.tensor(0), width).float()
            return output

        hook = visual.patch_embed.register_forward_hook(mark)
        try:
            attention = measure(model, example, AttentionRule(("received",)))["attention"]
        finally:
            hook.remove()
        frame = attention.unflatten(0, (STEPS, -1))[row // 15]
        assert int(frame.argmax()) == row % 15


def test_the_pooling_head_of_siglip():
    import transformers as hf

    config = copy.deepcopy(tiny("llava_onevision").config)
    config.vision_config.vision_use_head = True
    torch.manual_seed(1)
    model = hf.LlavaOnevisionForConditionalGeneration(config).eval()
    head = next(module for module in model.modules() if hasattr(module, "probe"))
    with torch.no_grad():
        for parameter in head.parameters():
            parameter.normal_()
    seen: list[Tensor] = []
    hook = head.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    actual = measure(model, video("llava_onevision"), AttentionRule(("probe",)))["attention"]
    published = Probe(registry.create_method("fastvid").attention_rule)
    compress(model, video("llava_onevision").inputs, Pipeline([published]))
    hook.remove()
    x = seen[0]
    with torch.no_grad():
        _, maps = head.attention(head.probe.repeat(len(x), 1, 1), x, x)
    expected = to_rows("llava_onevision", maps[:, 0, :, None])[:, 0]
    torch.testing.assert_close(actual, expected, **CLOSE)
    assert torch.equal(published.cues["attention"], actual)
    assert float(expected.std()) > 1e-3


def test_a_query_that_the_tower_does_not_have():
    model, example = tiny("llava_onevision"), video("llava_onevision")
    with pytest.warns(UserWarning, match="visionzip: the vision tower of this llava_onevision has no class token"):
        first = compress(model, example.inputs, "visionzip(keep=0.3, attention='class')")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        second = compress(model, example.inputs, "visionzip(keep=0.3)")
    assert torch.equal(first.tokens[0].features, second.tokens[0].features)
    with pytest.raises(ValueError, match="attention='probe' requires a vision tower with an attention-pooling head"):
        compress(model, example.inputs, "visionzip(keep=0.3, attention='probe')")
    with pytest.raises(ValueError, match="read different attention"):
        compress(model, example.inputs, Pipeline([Probe(), Probe(AttentionRule(layer=-2))]))


def test_a_tower_without_attention_is_refused(monkeypatch):
    model, example = tiny("qwen2_vl"), video("qwen2_vl")
    monkeypatch.setattr("fewtokens.llm.interface._TOWERS", ())
    message = r"visionzip needs attention .*, which qwen2_vl cannot provide; internvl, .*qwen3_vl.* and others can"
    with pytest.raises(ValueError, match=message):
        compress(model, example.inputs, "visionzip(keep=0.3)")
    compress(model, example.inputs, "kmeans(keep=0.3)")


def test_the_tower_keeps_its_fused_attention(family, monkeypatch):
    model, example = tiny(family), video(family)
    calls = []
    real = F.scaled_dot_product_attention
    monkeypatch.setattr(F, "scaled_dot_product_attention", lambda *a, **k: calls.append(1) or real(*a, **k))
    compress(model, example.inputs, "uniform(keep=0.3)", items=example.items)
    without, hooks = len(calls), count_hooks(vision(model))
    calls.clear()
    compress(model, example.inputs, "visionzip(keep=0.3)", items=example.items)
    assert len(calls) == without > 0
    assert count_hooks(vision(model)) == hooks


def count_hooks(model: Any) -> int:
    return sum(len(module._forward_pre_hooks) + len(module._forward_hooks) for module in model.modules())


class Sizes(TorchDispatchMode):
    """The number of entries of every tensor that an operation returns."""

    def __init__(self) -> None:
        super().__init__()
        self.largest = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        output = function(*args, **(kwargs or {}))
        for value in output if isinstance(output, tuple | list) else (output,):
            if isinstance(value, Tensor):
                self.largest = max(self.largest, value.numel())
        return output


def test_no_table_of_all_patches(family, monkeypatch):
    """Blocks of few queries give the same cue, and no tensor is larger than those of the tower itself."""
    model, example = tiny(family), video(family)
    rule = AttentionRule(("received",))
    expected = measure(model, example, rule)["attention"]
    with Sizes() as without:
        compress(model, example.inputs, Pipeline([Probe(rule, ())]), items=example.items)
    monkeypatch.setattr(tower, "_MAX_ENTRIES", 400)
    with Sizes() as blocks:
        actual = measure(model, example, rule)["attention"]
    torch.testing.assert_close(actual, expected, **CLOSE)
    assert blocks.largest <= without.largest


def cue_methods() -> list[str]:
    names = [name for name in registry.names() if issubclass(registry.get(name), Method)]
    methods = [registry.create_method(name) for name in names if registry.get(name).stage == "tokens"]
    return sorted(method.name for method in methods if set(method.needs) & set(tower.TOWER_CUES))


def test_every_method_runs_alone_and_in_a_batch(family):
    model = tiny(family)
    lengths = (3, 3) if family in ("llava_onevision", "llava_next_video") else (3, 2)
    prompts = [
        prompt(family, ("text", 3 + 2 * number), ("video", length), ("text", 4), seed=number)
        for number, length in enumerate(lengths)
    ]
    both = batch(family, *prompts)
    assert set(cue_methods()) >= {
        "fastvid", "holitom", "prumerge", "representation_shift", "visionzip", "vispruner",
    }  # fmt: skip
    for name in cue_methods():
        spec = f"{name}(keep=0.4)"
        together = compress(model, both.inputs, spec, items=both.items)
        for number, single in enumerate(prompts):
            alone = compress(model, single.inputs, spec, items=single.items)
            torch.testing.assert_close(together.tokens[number].features, alone.tokens[0].features)
            assert torch.equal(together.tokens[number].assignment, alone.tokens[0].assignment)
            assert 0 < alone.tokens[0].N < alone.tokens[0].grid.cells
        with attach(model, spec, items=both.items) as few:
            out = few.generate(**both.inputs, max_new_tokens=2, do_sample=False)
        assert out.shape[1] == few.last.inputs["input_ids"].shape[1] + 2


def test_the_published_rules():
    rules = {name: registry.create_method(name).attention_rule for name in cue_methods()}
    for name in ("visionzip", "holitom", "vispruner"):
        assert rules[name] == AttentionRule(("class", "received"), -1, "mean")
    assert rules["prumerge"] == AttentionRule(("class", "received"), "last", "joined")
    assert rules["fastvid"].queries == ("class", "probe", "mean_query")
    assert registry.build("holitom(keep=0.5, attention='received@-2')")[0].attention_rule[:2] == (("received",), -2)
    for text in ("row", "received@", "received@x", "class@-"):
        with pytest.raises(ValueError, match="attention must be one of"):
            AttentionRule().override(text)
