"""Methods inside a language model, on tiny random models: kept tokens, computed attention, entries of caches."""

from __future__ import annotations

import copy
from functools import cache

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from fewtokens.core import registry
from fewtokens.core.layer_method import LayerMethod
from fewtokens.core.pipeline import Pipeline
from fewtokens.llm import attach, compress
from fewtokens.llm.interface import cache_of
from fewtokens.llm.layers.cache import PrunedLayer, cache_bytes
from fewtokens.llm.layers.hooks import language_model
from fewtokens.llm.layers.masks import narrow_mask
from tests.llm.test_compress import GREEDY, extend_positions, generate, logits_of, recompute
from tests.llm.tiny import FAMILIES, IMAGE, VIDEO, batch, prompt, tiny

MIXTURE = (("text", 3), ("video", 4), ("text", 5))
# Specs that drop tokens, and the first layer with fewer tokens.
DROPS = {
    "fastv(keep=0.5, layer=2)": 2,
    "fastv(keep=3, layer=1)": 1,
    "pyramid_drop(keep=(0.5, 0.25), layers=(1, 2))": 1,
    "flexselect(keep=0.3, layer=1)": 1,
    "flexselect(keep=0.3, layer=2, by='mean')": 2,
    "prunevid_inner(keep=0.4, layer=1)": 2,
    "holitom_inner(keep=0.4, layer=2, merge='drop')": 2,
    "dart(keep=0.4, layer=2, pivots=(2, 1))": 2,
    "sparsevlm(keep=(0.4,), layers=(1,), recycle=0)": 2,
}
MERGES = (
    "holitom_inner(keep=0.5, layer=2)",
    "sttm_inner(keep=0.4, layer=2)",
    "sttm_inner(0.3, tau_time=0.2, levels=3, layer=2)",
    "sparsevlm(keep=(0.3,), layers=(1,), recycle=0.9)",
)
DYCOKE = ("dycoke_cache(keep=0.3, layer=1)", "dycoke_cache(keep=0.3, layer=2, revive=False)")

pytestmark = pytest.mark.parametrize("family", FAMILIES)


@cache
def eager(family):
    model = copy.deepcopy(tiny(family))
    model.set_attn_implementation("eager")
    return model


def generate_with(family, spec, example, **options):
    """Returns the output of `generate`, and the shortened prompt."""
    with attach(tiny(family), spec, items=example.items) as few:
        out = few.generate(**copy.copy(example.inputs), **(GREEDY | options))
    return out, few.last


def cached_columns(out, length):
    """Returns, for each layer, the columns of the prompt in its cache, bool [B,length]."""
    actual = []
    for layer in out.past_key_values.layers:
        marks = torch.ones(layer.keys.shape[0], length, dtype=torch.bool)
        if isinstance(layer, PrunedLayer):
            columns = layer.columns.masked_fill(layer.columns < 0, layer.length)
            marks = torch.zeros(layer.keys.shape[0], layer.length + 1, dtype=torch.bool)
            marks = marks.scatter(1, columns, True)[:, :length]
        actual.append(marks)
    return actual


def forward_with_masks(model, short, sequences, visible=None, positions=None, **options):
    """A forward pass without a cache in which query q of layer i sees exactly the keys `visible[i]` [B,Q or 1,K]."""
    inputs = {**short, "input_ids": sequences, "use_cache": False}
    new = sequences.shape[1] - short["input_ids"].shape[1]
    inputs["attention_mask"] = torch.nn.functional.pad(short["attention_mask"], (0, new), value=1)
    inputs["position_ids"] = extend_positions(inputs, new) if positions is None else positions
    real, length = inputs["attention_mask"].bool(), sequences.shape[1]
    hooks = []
    for layer, marks in zip(language_model(model).layers, visible or (), strict=visible is not None):
        allowed = torch.ones(length, length, dtype=torch.bool).tril() & real[:, None] & marks
        allowed = (allowed | torch.eye(length, dtype=torch.bool))[:, None]
        if model.config._attn_implementation == "eager":
            allowed = torch.zeros(allowed.shape).masked_fill(~allowed, torch.finfo(torch.float32).min)

        def replace(layer, args, kwargs, allowed=allowed):
            return args, kwargs | {"attention_mask": allowed}

        hooks.append(layer.register_forward_pre_hook(replace, with_kwargs=True))
    try:
        with torch.no_grad():
            return model(**inputs, **options)
    finally:
        for hook in hooks:
            hook.remove()


def with_later_text(marks, length):
    """Columns of a prompt, and all text after it, bool [B,1,length]."""
    return torch.nn.functional.pad(marks, (0, length - marks.shape[1]), value=True)[:, None]


def all_visible(short):
    return [torch.ones_like(short["input_ids"], dtype=torch.bool)] * 3


@pytest.mark.parametrize(
    "spec",
    [
        "fastv(keep=1.0, layer=1)",
        "pyramid_drop(keep=(1.0, 1.0), layers=(1, 2))",
        "holitom_inner(keep=1.0, layer=1)",
        "prunevid_inner(keep=1.0, layer=1)",
        "flexselect(keep=1.0, layer=1)",
        "sttm_inner(1.01, tau_time=1.01, layer=2)",
        "dycoke_cache(keep=1.0, layer=1)",
    ],
)
def test_a_full_budget_is_bit_equal_to_stock(family, spec):
    example = prompt(family, ("text", 3), ("video", 3), ("text", 2), ("image",), ("text", 3))
    stock = generate(tiny(family), example.inputs)
    out, _ = generate_with(family, spec, example)
    assert torch.equal(logits_of(out), logits_of(stock))


def budget(count, keep):
    return keep if isinstance(keep, int) else max(1, int(count * keep + 1e-6))


def layer_input(family, short, index):
    """The input of a layer for one prompt, [L,D]."""
    seen = []

    def record(layer, args, kwargs):
        seen.append(args[0] if args else kwargs["hidden_states"])

    hook = language_model(tiny(family)).layers[index].register_forward_pre_hook(record, with_kwargs=True)
    try:
        with torch.no_grad():
            tiny(family)(**short)
    finally:
        hook.remove()
    return seen[0][0]


@pytest.mark.parametrize("spec", DROPS)
def test_kept_tokens_have_the_highest_attention(family, spec):
    example = prompt(family, *MIXTURE, seed=2)
    out, last = generate_with(family, spec, example)
    short, (video,) = last.inputs, last.layout.videos
    length = short["input_ids"].shape[1]
    actual = cached_columns(out, length)
    visible = [mark[:, None] for mark in all_visible(short)]
    maps = forward_with_masks(eager(family), short, short["input_ids"], visible, output_attentions=True).attentions
    columns, n = video.columns, len(video.columns)
    text_columns = torch.arange(int(columns[-1]) + 1, length)
    if family == "llava_onevision":
        text_columns = text_columns[1:]  # the newline is not text
    (method,) = registry.build(spec)

    def best(scores, count, within=None):
        within = columns if within is None else within
        mark = torch.ones(length, dtype=torch.bool)
        mark[within] = False
        mark[within[scores[within].argsort(descending=True, stable=True)[:count]]] = True
        return mark

    if method.name in ("fastv", "holitom_inner"):
        count = method.keep if isinstance(method.keep, int) else int(n * method.keep + 0.5)
        expected = {method.layer: best(maps[method.layer - 1][0, :, -1].mean(0), count)}
    elif method.name == "pyramid_drop":
        first = best(maps[1][0, :, -1].mean(0), budget(n, 0.5))
        visible[1] = visible[2] = first[None, None]
        later = forward_with_masks(eager(family), short, short["input_ids"], visible, output_attentions=True).attentions
        survives = columns[first[columns]]
        expected = {1: first, 2: best(later[2][0, :, -1].mean(0), budget(n, 0.25), survives) & first}
    elif method.name == "dart":
        with torch.no_grad():
            stock = tiny(family)(**short, use_cache=True)
        norm = cache_of(stock).layers[1].keys[0].abs().sum((0, 2))
        x = language_model(tiny(family)).norm(layer_input(family, short, 2)).detach()
        x = x / x.norm(dim=1, keepdim=True)
        order = torch.cat([columns[norm[columns].topk(2).indices], text_columns[norm[text_columns].topk(1).indices]])
        kept, spare = order[:2].tolist(), int(n * 0.4 + 1e-6) - 2
        for turn, pivot in enumerate(order):
            rest = torch.tensor([c for c in columns.tolist() if c not in kept])
            part = spare // 3 + (turn < spare % 3)
            kept += rest[(x[rest] @ x[pivot]).argsort(stable=True)[:part]].tolist()
        mark = torch.ones(length, dtype=torch.bool)
        mark[[c for c in columns.tolist() if c not in kept]] = False
        expected = {2: mark}
    elif method.name == "sparsevlm":
        embeddings = tiny(family).get_input_embeddings()(short["input_ids"][0, text_columns])
        tokens = layer_input(family, short, 0)[columns]
        match = (tokens @ embeddings.T).softmax(1).mean(0)
        raters = text_columns[match > match.mean()]
        expected = {2: best(maps[1][0][:, raters].mean((0, 1)), budget(n, 0.4))}
    elif method.name == "flexselect":
        row = maps[method.layer][0][:, text_columns]
        expected = {method.layer: best(row.mean((0, 1)) if method.by == "mean" else row.amax((0, 1)), budget(n, 0.3))}
    else:
        scores = maps[1][0][:, text_columns].amax((0, 1))
        frames = columns.reshape(4, -1)
        per_frame = [best(scores, budget(frames.shape[1], 0.4), frame) for frame in frames]
        mark = torch.stack(per_frame).all(0)
        expected = {0: mark, 1: mark, 2: mark}
    for layer in range(3):
        mark = expected.get(layer, expected.get(layer - 1, torch.ones(length, dtype=torch.bool)))
        assert torch.equal(actual[layer][0], mark), layer


@pytest.mark.parametrize("spec", DROPS)
def test_cached_decoding_equals_a_full_pass_with_the_same_tokens_masked(family, spec):
    example = prompt(family, *MIXTURE)
    out, last = generate_with(family, spec, example)
    short, length = last.inputs, out.sequences.shape[1]
    prompt_length = short["input_ids"].shape[1]
    visible = [
        with_later_text(mark, length).expand(-1, length, -1).clone() for mark in cached_columns(out, prompt_length)
    ]
    if spec.startswith("prunevid"):
        for mark in visible[:2]:
            mark[:, :prompt_length] = True  # the prompt was processed with all tokens in earlier layers
    full = forward_with_masks(tiny(family), short, out.sequences, visible).logits[:, prompt_length - 1 : -1]
    torch.testing.assert_close(logits_of(out), full, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("spec", [*(spec for spec in DROPS if "prunevid" not in spec), *MERGES])
def test_cached_decoding_equals_recomputation_without_a_cache(family, spec):
    model, example = tiny(family), prompt(family, ("text", 3), ("video", 2), ("text", 2), ("video", 2), ("text", 4))
    with attach(model, spec, items=example.items) as few:
        out = few.generate(**example.inputs, **GREEDY)
        again = recompute(model, few.last.inputs, out.sequences)
    torch.testing.assert_close(logits_of(out), again, rtol=1e-4, atol=1e-4)
    stock = generate(model, compress(model, example.inputs, "", items=example.items).inputs)
    assert not torch.allclose(logits_of(out), logits_of(stock), atol=1e-4)


@pytest.mark.parametrize("spec", DYCOKE)
def test_dycoke_equals_a_full_pass_that_masks_dropped_entries(family, spec):
    model, example = tiny(family), prompt(family, *MIXTURE)
    (method,) = registry.build(spec)
    steps = []

    def record(layer, args, kwargs, output):
        steps.append(cache_of(kwargs).layers[method.layer].columns)

    with (
        attach(model, spec, items=example.items) as few,
        language_model(model).layers[2].register_forward_hook(record, with_kwargs=True),
    ):
        # A random model may generate placeholders.
        out = few.generate(**example.inputs, **(GREEDY | {"max_new_tokens": 8, "suppress_tokens": [IMAGE, VIDEO]}))
    short, length = few.last.inputs, out.sequences.shape[1]
    prompt_length = short["input_ids"].shape[1]
    visible = torch.ones(1, length, length, dtype=torch.bool)
    for step, columns in enumerate(steps[1:]):
        visible[:, prompt_length + step] = False
        visible[:, prompt_length + step, columns[0]] = True
    visible = [visible if number >= method.layer else torch.ones_like(visible) for number in range(3)]
    full = forward_with_masks(model, short, out.sequences, visible)
    torch.testing.assert_close(logits_of(out), full.logits[:, prompt_length - 1 : -1], rtol=1e-4, atol=1e-4)
    # The entries that the first generated token attends to most; the prompt was processed with all entries.
    row = forward_with_masks(eager(family), short, out.sequences, visible, output_attentions=True).attentions[
        method.layer - 1
    ]
    columns = few.last.layout.videos[0].columns
    scores = row[0, :, prompt_length].mean(0)[columns]
    best = columns[scores.argsort(descending=True, stable=True)[: budget(len(columns), 0.3)]]
    assert sorted(best.tolist()) == [c for c in steps[1][0].tolist() if c in columns.tolist()]


def test_dycoke_holds_less_and_dropped_entries_return(family):
    example = prompt(family, *MIXTURE)
    full_out, _ = generate_with(family, "", example)
    full = cache_bytes(full_out.past_key_values)
    out, last = generate_with(family, "dycoke_cache(keep=0.25, layer=1, similarity=1.0)", example)
    n = len(last.layout.videos[0].columns)
    entry = full[0] // out.past_key_values.get_seq_length()
    dropped_bytes = (n - budget(n, 0.25)) * entry
    assert cache_bytes(out.past_key_values) == [full[0], full[1] - dropped_bytes, full[2] - dropped_bytes]
    assert cache_bytes(out.past_key_values, offloaded=True) == full
    layer = out.past_key_values.layers[2]
    layer.select(torch.ones(1, layer.length, dtype=torch.bool), revive=True)
    assert layer.columns.tolist() == [list(range(layer.length))]
    discarded, _ = generate_with(family, "dycoke_cache(keep=0.25, layer=1, revive=False)", example)
    assert cache_bytes(discarded.past_key_values, offloaded=True) == [
        *cache_bytes(out.past_key_values)[:2],
        full[2] - dropped_bytes,
    ]


@pytest.mark.parametrize("spec", list(DROPS)[:3] + list(DROPS)[5:6] + list(MERGES[::2]) + [MERGES[-1], DYCOKE[0]])
def test_a_batch_equals_single(family, spec):
    model = tiny(family)
    steps = (3, 3, 3) if family.startswith("llava") else (3, 4, 2)
    prompts = [
        prompt(family, ("text", before), ("video", step), ("text", 4), seed=seed)
        for seed, (before, step) in enumerate(zip((3, 6, 2), steps, strict=True))
    ]
    prompts.append(prompt(family, ("text", 9), seed=5))
    both = batch(family, *prompts)
    chain = spec if "sttm" in spec or not family.startswith("llava") else f"tome(keep=0.6) | {spec}"
    with attach(model, chain, items=both.items) as few:
        together = few.generate(**both.inputs, **GREEDY)
    for number, alone in enumerate(prompts):
        with attach(model, chain, items=alone.items) as few:
            single = few.generate(**alone.inputs, **GREEDY)
        torch.testing.assert_close(logits_of(together)[number], logits_of(single)[0], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("spec", ["fastv(keep=0.4, layer=1)", "holitom_inner(keep=0.4, layer=2)"])
def test_beams(family, spec):
    model = tiny(family)
    both = batch(family, *(prompt(family, *MIXTURE, seed=seed) for seed in range(2)))
    options = {"num_beams": 3, "num_return_sequences": 1, "length_penalty": 0.0, "output_scores": True}
    with attach(model, spec, items=both.items) as few:
        out = few.generate(**both.inputs, **(GREEDY | options))
        again = compress(model, both.inputs, "", items=both.items).inputs
        log_probs = recompute(model, again, out.sequences).log_softmax(2)
    new = log_probs.shape[1]
    chosen = log_probs.gather(2, out.sequences[:, -new:, None]).squeeze(2).sum(1)
    torch.testing.assert_close(out.sequences_scores, chosen, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("spec", [DYCOKE[0], "prunevid_inner(keep=0.4, layer=1)"])
def test_beams_of_pruned_caches(family, spec):
    out, _ = generate_with(family, spec, prompt(family, *MIXTURE), num_beams=3, num_return_sequences=3)
    first, _ = generate_with(family, spec, prompt(family, *MIXTURE), num_beams=1)
    assert out.sequences.shape == (3, first.sequences.shape[1])
    layer = out.past_key_values.layers[2]
    assert layer.columns.shape == (3, layer.keys.shape[2])


class Squares(TorchDispatchMode):
    """Records the largest tensor with a row and a column for each position of a sequence."""

    def __init__(self, length):
        super().__init__()
        self.length, self.largest = length, 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for part in out if isinstance(out, (tuple, list)) else (out,):
            sizes = part.shape if isinstance(part, torch.Tensor) else ()
            if sum(size >= self.length and size != 200 for size in sizes) > 1:  # the size of the vocabulary
                self.largest = max(self.largest, part.numel())
        return out


@pytest.mark.parametrize("spec", ["fastv(keep=0.5, layer=1)", "flexselect(keep=0.3, layer=1)", DYCOKE[0]])
def test_fused_attention_stays_and_only_rows_are_computed(family, spec):
    model, example = tiny(family), prompt(family, ("text", 80), ("video", 4), ("text", 5))
    kind = language_model(model).config._attn_implementation
    assert kind == "sdpa"
    with attach(model, spec, items=example.items) as few:
        short = few.compress(**example.inputs)
        length = short["input_ids"].shape[1]
        # Longer than any other axis of these models, except the vocabulary.
        with Squares(81) as squares, torch.no_grad():
            model(**short, use_cache=True)
        assert length > 81
        assert squares.largest == 0
        assert language_model(model).config._attn_implementation == kind


@pytest.mark.parametrize("spec", ["fastv(keep=0.5, layer=1)", "prunevid_inner(keep=0.4, layer=1)", MERGES[0]])
def test_a_second_turn_on_the_cache(family, spec):
    model, example = tiny(family), prompt(family, *MIXTURE)
    more = torch.randint(2, 180, (1, 4), generator=torch.Generator().manual_seed(9))
    with attach(model, spec, items=example.items) as few:
        first = few.generate(**example.inputs, **GREEDY)
        ids = torch.cat([first.sequences, more], dim=1)
        second = few.generate(
            input_ids=ids, attention_mask=torch.ones_like(ids), past_key_values=first.past_key_values, **GREEDY
        )
        short, length = few.last.inputs, second.sequences.shape[1]
        prompt_length = short["input_ids"].shape[1]
        full = {**short, "attention_mask": torch.ones_like(second.sequences)}
        at = extend_positions(full, length - prompt_length)
        if "prunevid" not in spec:
            again = forward_with_masks(model, short, second.sequences, positions=at).logits[:, -6:-1]
            torch.testing.assert_close(logits_of(second), again, rtol=1e-4, atol=1e-4)
    if "holitom" not in spec:
        visible = [
            with_later_text(mark, length).expand(-1, length, -1).clone()
            for mark in cached_columns(second, prompt_length)
        ]
        if "prunevid" in spec:
            for mark in visible[:2]:
                mark[:, :prompt_length] = True
        full = forward_with_masks(model, short, second.sequences, visible, at).logits[:, -6:-1]
        torch.testing.assert_close(logits_of(second), full, rtol=1e-4, atol=1e-4)
    # Outside the block the cache is refused.
    with pytest.raises(ValueError, match="this cache has fewer entries"):
        model.generate(
            input_ids=ids, attention_mask=torch.ones_like(ids), past_key_values=second.past_key_values, max_new_tokens=1
        )


def test_caches_are_smaller_layer_by_layer(family):
    example = prompt(family, *MIXTURE)
    full_out, _ = generate_with(family, "", example)
    full = cache_bytes(full_out.past_key_values)
    out, last = generate_with(family, "pyramid_drop(keep=(0.5, 0.25), layers=(1, 2))", example)
    n, length = len(last.layout.videos[0].columns), full_out.past_key_values.get_seq_length()
    assert out.past_key_values.get_seq_length() == length
    stored = [layer.keys.shape[2] for layer in out.past_key_values.layers]
    assert stored == [length, length - n + n // 2, length - n + n // 4]
    assert cache_bytes(out.past_key_values) == [full[0] * part // length for part in stored]


@pytest.mark.parametrize(
    "spec", ["fastv(keep=0.5, layer=1)", MERGES[0], "sttm_inner(keep=0.4, layer=2, weighted=True)"]
)
def test_labels_and_gradients(family, spec):
    model, example = copy.deepcopy(tiny(family)), prompt(family, *MIXTURE)
    labels = example.inputs["input_ids"].clone()
    labels[:, :-3] = -100
    with attach(model, spec, items=example.items) as few:
        out = few(**example.inputs, labels=labels)
        assert few.last.layout.ends.tolist() == [few.last.inputs["input_ids"].shape[1] - 4]
    assert out.logits.shape[:2] == few.last.inputs["input_ids"].shape
    out.loss.backward()
    names = ("vision_tower", "visual", "vision_model")
    vision = next(getattr(model.base_model, name) for name in names if hasattr(model.base_model, name))
    assert sum(float(p.grad.abs().sum()) for p in vision.parameters() if p.grad is not None) > 0


def test_a_text_prompt_is_unchanged(family):
    model, example = tiny(family), prompt(family, ("text", 7))
    with attach(model, "tome(keep=0.5) | fastv(layer=1) | dycoke_cache(layer=2)") as few:
        out = few.generate(**example.inputs, **GREEDY)
    assert torch.equal(logits_of(out), logits_of(generate(model, example.inputs)))


def test_a_chain(family):
    example = prompt(family, *MIXTURE)
    out, last = generate_with(
        family, "tome(keep=0.5) | fastv(keep=0.5, layer=1) | dycoke_cache(keep=0.25, layer=2)", example
    )
    n = last.tokens[0].N
    assert n == last.tokens[0].grid.cells // 2
    text = last.inputs["input_ids"].shape[1] - n + 4
    stored = [layer.keys.shape[2] for layer in out.past_key_values.layers]
    assert stored == [text + n, text + n // 2, text + max(1, n // 4)]


def test_hooks_are_gone(family):
    model, example = tiny(family), prompt(family, *MIXTURE)
    stock = generate(model, example.inputs)
    generate_with(family, "fastv(keep=0.5, layer=1)", example)
    with pytest.raises(RuntimeError, match="stop"), attach(model, "fastv(layer=1)"):
        raise RuntimeError("stop")
    # The hooks of transformers for output_hidden_states stay on the encoder.
    for module in [model, language_model(model), *language_model(model).modules()]:
        assert not module._forward_pre_hooks
        assert not module._forward_hooks
    assert torch.equal(logits_of(generate(model, example.inputs)), logits_of(stock))


@pytest.mark.parametrize(
    "spec", ["kmeans(keep=4) | fastv(keep=0.9, layer=1)", "pyramid_drop((0.99, 0.98), layers=(1, 2))"]
)
def test_a_budget_that_rounds_to_all_tokens_is_legal(family, spec):
    """Of 4 tokens, 90 % are 4."""
    model, example = tiny(family), prompt(family, *MIXTURE)
    with attach(model, spec, items=example.items) as few:
        assert few(**example.inputs).logits.isfinite().all()


def test_unreduced_videos_and_missing_layers_are_refused(family):
    model, example = copy.deepcopy(tiny(family)), prompt(family, *MIXTURE)
    with attach(model, "fastv(keep=0.5, layer=2)", items=example.items) as few:
        layers = language_model(model).layers
        language_model(model).layers = layers[:2]
        with pytest.raises(ValueError, match="nothing was dropped before layer 2"):
            few(**example.inputs)
        language_model(model).layers = layers
    with attach(model, "fastv(layer=1)"), pytest.raises(ValueError, match="called directly, so no tokens were reduced"):
        model(**example.inputs)


def test_errors(family):
    model, example = tiny(family), prompt(family, *MIXTURE)
    for spec, message in {
        "fastv(layer=3)": "layer 3 is beyond the model's 3 layers; use one of 1 to 2",
        "fastv(layer=99)": "layer 99 is beyond the model's 3 layers; use one of 1 to 2",
        "holitom_inner(layer=99)": "layer 99 is beyond .* 1 to 2",
        "prunevid_inner(layer=99)": "layer 99 is beyond the model's 3 layers; use one of 0 to 1",
        "prunevid_inner(layer=2)": "layer 2 is beyond .* 0 to 1",
        "pyramid_drop(keep=(0.5,), layers=(99,))": "layer 99 is beyond .* 1 to 2",
        "sttm_inner(layer=99)": "layer 99 is beyond .* 1 to 2",
        "dycoke_cache(layer=99)": "layer 99 is beyond .* 1 to 2",
        "fastv(layer=0)": "at least 1",
        "flexselect": "layer 19 is beyond",
        "pyramid_drop": "too few for 3 stages",
        "pyramid_drop(keep=(0.5,), layers=(1, 2))": "same length, got 1 and 2",
        "pyramid_drop(keep=(0.5, 0.2), layers=(2, 1))": "ascending order",
        "pyramid_drop(0.5)": "keep must be a list",
        "prunevid_inner(keep=3)": "a fraction of each group",
        "dycoke_cache(layer=3)": "layer 3 is beyond",
        "dycoke_cache(similarity=2.0)": "must be a cosine",
        "fastv(layer=1) | tome(keep=0.5)": "tome acts before the language model",
        "holitom_inner(merge='all')": "merge must be",
        "flexselect(by='sum')": "by must be",
        "sttm_inner(positions='repack')": "positions must be",
        "fastw": "did you mean fastv",
    }.items():
        with pytest.raises(ValueError, match=message), attach(model, spec):
            pass
    with pytest.raises(ValueError, match="acts in the stage 'llm'"):
        compress(model, example.inputs, "fastv")
    with pytest.raises(ValueError, match=r"has the stage 'llm', but a pipeline accepts only"):
        Pipeline("fastv")
    with attach(model, "fastv(layer=1)", items=example.items) as few:
        with pytest.raises(ValueError, match="a cache that grows"):
            few.generate(**example.inputs, cache_implementation="static", max_new_tokens=2)
        short = few.compress(**example.inputs)
        with pytest.raises(ValueError, match="require the prompt in one pass"):
            model(**short | {"input_ids": short["input_ids"][:, :4]})
    with (
        attach(model, "tome(keep=0.5) | sttm_inner(layer=2)", items=example.items) as few,
        pytest.raises(ValueError, match="sttm_inner works on whole frames"),
    ):
        few(**example.inputs)
    with (
        attach(model, "prunevid_inner(layer=1)", items=example.items) as few,
        pytest.raises(ValueError, match="use_cache=True"),
    ):
        few.generate(**example.inputs, use_cache=False, max_new_tokens=2)
    if family == "qwen3_vl":
        with (
            attach(model, "holitom_inner(layer=1)", items=example.items) as few,
            pytest.raises(ValueError, match="layer 2 is the first before which tokens can be merged"),
        ):
            few(**example.inputs)


def test_merging_equals_references(family):
    """HoliTom against a loop over tokens, STTM against `sttm` on the same hidden states."""
    example = prompt(family, *MIXTURE)
    for spec in ("holitom_inner(keep=0.4, layer=2)", "holitom_inner(keep=0.4, layer=2, merge='mean')", MERGES[1]):
        (method,) = registry.build(spec)
        captured = {}

        def capture(layer, args, kwargs, captured=captured):
            captured["hidden"] = args[0]

        model = tiny(family)
        with attach(model, spec, items=example.items) as few:
            layer = language_model(model).layers[2]
            with layer.register_forward_pre_hook(capture, with_kwargs=True), torch.no_grad():
                out = few(**example.inputs, use_cache=True)
        merged, columns = captured["hidden"][0], out.past_key_values.layers[2].columns[0]
        (video,) = few.last.layout.videos
        with layer.register_forward_pre_hook(capture, with_kwargs=True), torch.no_grad():
            model(**few.last.inputs)
        before = captured["hidden"][0][video.columns]
        survives = torch.isin(video.columns, columns)
        actual = merged[torch.isin(columns, video.columns)]
        if method.name == "sttm_inner":
            full = video.tokens.replace(features=before[None])
            after = registry.build("sttm(keep=0.4)")[0](full)
            first = [int((after.assignment[0] == token).nonzero()[0]) for token in range(after.N)]
            assert sorted(first) == survives.nonzero()[:, 0].tolist()
            torch.testing.assert_close(actual, after.features[0][torch.tensor(first).argsort()])
            continue
        targets, rest = before[survives], before[~survives]
        target = torch.nn.functional.cosine_similarity(rest[:, None], targets[None], dim=2).argmax(1).tolist()
        expected, members = targets.clone(), [[row] for row in targets]
        for token, at in zip(rest, target, strict=True):
            expected[at] = (expected[at] + token) / 2
            members[at].append(token)
        if method.merge == "mean":
            expected = torch.stack([torch.stack(rows).mean(0) for rows in members])
        torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("spec", ["fastv(keep=0.5, layer=1)", "prunevid_inner(keep=0.4, layer=1)", DYCOKE[0]])
def test_eager_attention_gives_the_same_logits(family, spec):
    """Eager attention has additive masks."""
    same = family.startswith("llava")
    prompts = [prompt(family, ("text", 3 + n), ("video", 3 if same else 3 + n), ("text", 4), seed=n) for n in range(2)]
    both = batch(family, *prompts)
    fused, _ = generate_with(family, spec, both)
    with attach(eager(family), spec, items=both.items) as few:
        out = few.generate(**both.inputs, **GREEDY)
    torch.testing.assert_close(logits_of(out), logits_of(fused), rtol=1e-4, atol=1e-4)


def test_masks_of_flash_attention(family):
    keys = torch.tensor([[-1, 0, 2], [1, 2, 3]])
    mask = torch.tensor([[1, 1, 1, 1], [0, 1, 1, 1]]).bool()
    actual = narrow_mask(mask, keys, keys, first=0, flash=True, padded=True)
    assert actual.tolist() == [[False, True, True], [True, True, True]]
    assert narrow_mask(None, keys[1:], keys[1:], first=0, flash=True, padded=False) is None
    assert narrow_mask(None, keys[:, :1], keys, first=0, flash=True, padded=True).tolist() == actual.tolist()
    with pytest.raises(ValueError, match="support only masks of sdpa, eager and flash"):
        narrow_mask(object(), keys, keys, first=0, flash=False, padded=True)


@pytest.mark.parametrize("spec", ["fastv(keep=0.5, layer=1)", "holitom_inner(keep=0.5, layer=2)", DYCOKE[0]])
def test_half_precision(family, spec):
    model, example = copy.deepcopy(tiny(family)).to(torch.bfloat16), prompt(family, *MIXTURE)
    inputs = {
        name: v.bfloat16() if v.is_floating_point() and "pixel" in name else v for name, v in example.inputs.items()
    }
    with attach(model, spec, items=example.items) as few:
        out = few.generate(**inputs, **GREEDY)
    assert logits_of(out).isfinite().all()
    assert out.past_key_values.layers[2].keys.dtype == torch.bfloat16


@pytest.mark.parametrize("spec", ["fastv(keep=0.5, layer=1)", "prunevid_inner(keep=0.4, layer=1)"])
def test_autocast(family, spec):
    example = prompt(family, *MIXTURE)
    with torch.autocast("cpu", torch.bfloat16):
        out, _ = generate_with(family, spec, example)
    expected, _ = generate_with(family, spec, example)
    # By rounding, tokens may change places, but as many are kept.
    assert logits_of(out).isfinite().all()
    lengths = [[layer.keys.shape[2] for layer in each.past_key_values.layers] for each in (out, expected)]
    assert lengths[0] == lengths[1]


@pytest.mark.parametrize("spec", ["fastv(keep=0.5, layer=1)", "prunevid_inner(keep=0.4, layer=1)"])
def test_speculative_decoding(family, spec):
    """Caches are cropped after rejected tokens."""
    example = prompt(family, *MIXTURE)
    baseline, _ = generate_with(family, spec, example, max_new_tokens=12)
    speculative, _ = generate_with(family, spec, example, max_new_tokens=12, prompt_lookup_num_tokens=3)
    assert torch.equal(speculative.sequences, baseline.sequences)


def test_labels_padded_on_the_right(family):
    model, example = tiny(family), prompt(family, *MIXTURE)
    inputs = dict(example.inputs)
    inputs["labels"] = inputs["input_ids"].clone()
    inputs["labels"][:, :-3] = -100
    padded_inputs = dict(inputs)
    for name, fill in {"input_ids": 0, "attention_mask": 0, "mm_token_type_ids": 0, "labels": -100}.items():
        if name in padded_inputs:
            padded_inputs[name] = torch.nn.functional.pad(padded_inputs[name], (0, 3), value=fill)
    lengths = []
    with attach(model, "fastv(keep=0.5, layer=1)", items=example.items) as few, torch.no_grad():
        single = few(**inputs)
        lengths.append(few.last.layout.ends.tolist())
        padded = few(**padded_inputs)
        lengths.append(few.last.layout.ends.tolist())
    assert lengths[0] == lengths[1]
    torch.testing.assert_close(padded.loss, single.loss, rtol=1e-4, atol=1e-4)


def test_metadata_of_every_layer_method(family):
    for name in registry.layer_names():
        kind = registry.get(name)
        assert issubclass(kind, LayerMethod)
        method = kind()
        assert method.stage == "llm" and method.name == name and method.paper and method.license and method.cost
        (again,) = registry.build(method.spec)
        assert again.spec == method.spec
        assert name not in registry.names()
