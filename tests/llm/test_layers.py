"""Methods inside a language model, on tiny random models: what is kept, what is computed, what caches hold."""

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
from fewtokens.llm.layers.masks import narrow
from tests.llm.test_compress import GREEDY, generate, lengthened, logits_of, recomputed
from tests.llm.tiny import FAMILIES, IMAGE, VIDEO, batch, prompt, tiny

PARTS = (("text", 3), ("video", 4), ("text", 5))
# What goes by the layer that comes after it: the attention of which layer, over which words, pooled how.
DROPS = {
    "fastv(keep=0.5, layer=2)": 2,
    "fastv(keep=3, layer=1)": 1,
    "pyramid_drop(keep=(0.5, 0.25), layers=(1, 2))": 1,
    "flexselect(keep=0.3, layer=1)": 1,
    "flexselect(keep=0.3, layer=2, by='mean')": 2,
    "prunevid_inner(keep=0.4, layer=1)": 2,
    "holitom_inner(keep=0.4, layer=2, merge='drop')": 2,
}
MERGES = (
    "holitom_inner(keep=0.5, layer=2)",
    "sttm_inner(keep=0.4, layer=2)",
    "sttm_inner(0.3, tau_time=0.2, levels=3, layer=2)",
)
DYCOKE = ("dycoke_cache(keep=0.3, layer=1)", "dycoke_cache(keep=0.3, layer=2, revive=False)")

pytestmark = pytest.mark.parametrize("family", FAMILIES)


@cache
def eager(family):
    model = copy.deepcopy(tiny(family))
    model.set_attn_implementation("eager")
    return model


def ask(family, spec, asked, **options):
    """What `generate` gives, and the shortened prompt."""
    with attach(tiny(family), spec, items=asked.items) as few:
        out = few.generate(**copy.copy(asked.inputs), **(GREEDY | options))
    return out, few.last


def kept(out, length):
    """By layer, the columns of the prompt that its cache has, bool [B,length]."""
    found = []
    for layer in out.past_key_values.layers:
        marks = torch.ones(layer.keys.shape[0], length, dtype=torch.bool)
        if isinstance(layer, PrunedLayer):
            columns = layer.columns.masked_fill(layer.columns < 0, layer.length)
            marks = torch.zeros(layer.keys.shape[0], layer.length + 1, dtype=torch.bool)
            marks = marks.scatter(1, columns, True)[:, :length]
        found.append(marks)
    return found


def forced(model, short, sequences, seen=None, positions=None, **options):
    """One pass without a cache in which query q of layer i sees `seen[i]` [B,Q or 1,K] and nothing else."""
    inputs = {**short, "input_ids": sequences, "use_cache": False}
    new = sequences.shape[1] - short["input_ids"].shape[1]
    inputs["attention_mask"] = torch.nn.functional.pad(short["attention_mask"], (0, new), value=1)
    inputs["position_ids"] = lengthened(inputs, new) if positions is None else positions
    real, length = inputs["attention_mask"].bool(), sequences.shape[1]
    hooks = []
    for layer, marks in zip(language_model(model).layers, seen or (), strict=seen is not None):
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


def with_words(marks, length):
    """Columns of a prompt, and all words after it, bool [B,1,length]."""
    return torch.nn.functional.pad(marks, (0, length - marks.shape[1]), value=True)[:, None]


def everything(short):
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
    asked = prompt(family, ("text", 3), ("video", 3), ("text", 2), ("image",), ("text", 3))
    stock = generate(tiny(family), asked.inputs)
    out, _ = ask(family, spec, asked)
    assert torch.equal(logits_of(out), logits_of(stock))


def share(count, keep):
    return keep if isinstance(keep, int) else max(1, int(count * keep + 1e-6))


@pytest.mark.parametrize("spec", DROPS)
def test_what_is_kept_is_what_the_attention_maps_say(family, spec):
    asked = prompt(family, *PARTS, seed=2)
    out, last = ask(family, spec, asked)
    short, (video,) = last.inputs, last.layout.videos
    length = short["input_ids"].shape[1]
    found = kept(out, length)
    seen = [mark[:, None] for mark in everything(short)]
    maps = forced(eager(family), short, short["input_ids"], seen, output_attentions=True).attentions
    columns, n = video.columns, len(video.columns)
    words = torch.arange(int(columns[-1]) + 1, length)
    if family == "llava_onevision":
        words = words[1:]  # the newline is no word
    (method,) = registry.build(spec)

    def best(scores, count, within=None):
        within = columns if within is None else within
        mark = torch.ones(length, dtype=torch.bool)
        mark[within] = False
        mark[within[scores[within].argsort(descending=True, stable=True)[:count]]] = True
        return mark

    if method.name in ("fastv", "holitom_inner"):
        count = method.keep if isinstance(method.keep, int) else int(n * method.keep + 0.5)
        wanted = {method.layer: best(maps[method.layer - 1][0, :, -1].mean(0), count)}
    elif method.name == "pyramid_drop":
        first = best(maps[1][0, :, -1].mean(0), share(n, 0.5))
        seen[1] = seen[2] = first[None, None]
        later = forced(eager(family), short, short["input_ids"], seen, output_attentions=True).attentions
        stays = columns[first[columns]]
        wanted = {1: first, 2: best(later[2][0, :, -1].mean(0), share(n, 0.25), stays) & first}
    elif method.name == "flexselect":
        row = maps[method.layer][0][:, words]
        wanted = {method.layer: best(row.mean((0, 1)) if method.by == "mean" else row.amax((0, 1)), share(n, 0.3))}
    else:
        scores = maps[1][0][:, words].amax((0, 1))
        frames = columns.reshape(4, -1)
        every = [best(scores, share(frames.shape[1], 0.4), frame) for frame in frames]
        mark = torch.stack(every).all(0)
        wanted = {0: mark, 1: mark, 2: mark}
    for layer in range(3):
        mark = wanted.get(layer, wanted.get(layer - 1, torch.ones(length, dtype=torch.bool)))
        assert torch.equal(found[layer][0], mark), layer


@pytest.mark.parametrize("spec", DROPS)
def test_cached_decoding_equals_a_full_pass_with_the_same_tokens_hidden(family, spec):
    asked = prompt(family, *PARTS)
    out, last = ask(family, spec, asked)
    short, length = last.inputs, out.sequences.shape[1]
    prompted = short["input_ids"].shape[1]
    seen = [with_words(mark, length).expand(-1, length, -1).clone() for mark in kept(out, prompted)]
    if spec.startswith("prunevid"):
        for mark in seen[:2]:
            mark[:, :prompted] = True  # the prompt itself saw all in the layers before
    whole = forced(tiny(family), short, out.sequences, seen).logits[:, prompted - 1 : -1]
    torch.testing.assert_close(logits_of(out), whole, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("spec", [*(spec for spec in DROPS if "prunevid" not in spec), *MERGES])
def test_cached_decoding_equals_recomputation_without_a_cache(family, spec):
    model, asked = tiny(family), prompt(family, ("text", 3), ("video", 2), ("text", 2), ("video", 2), ("text", 4))
    with attach(model, spec, items=asked.items) as few:
        out = few.generate(**asked.inputs, **GREEDY)
        again = recomputed(model, few.last.inputs, out.sequences)
    torch.testing.assert_close(logits_of(out), again, rtol=1e-4, atol=1e-4)
    stock = generate(model, compress(model, asked.inputs, "", items=asked.items).inputs)
    assert not torch.allclose(logits_of(out), logits_of(stock), atol=1e-4)


@pytest.mark.parametrize("spec", DYCOKE)
def test_dycoke_equals_a_full_pass_that_hides_what_is_away(family, spec):
    model, asked = tiny(family), prompt(family, *PARTS)
    (method,) = registry.build(spec)
    steps = []

    def note(layer, args, kwargs, output):
        steps.append(cache_of(kwargs).layers[method.layer].columns)

    with (
        attach(model, spec, items=asked.items) as few,
        language_model(model).layers[2].register_forward_hook(note, with_kwargs=True),
    ):
        # Placeholders are words like others to a random model.
        out = few.generate(**asked.inputs, **(GREEDY | {"max_new_tokens": 8, "suppress_tokens": [IMAGE, VIDEO]}))
    short, length = few.last.inputs, out.sequences.shape[1]
    prompted = short["input_ids"].shape[1]
    seen = torch.ones(1, length, length, dtype=torch.bool)
    for step, columns in enumerate(steps[1:]):
        seen[:, prompted + step] = False
        seen[:, prompted + step, columns[0]] = True
    seen = [seen if number >= method.layer else torch.ones_like(seen) for number in range(3)]
    whole = forced(model, short, out.sequences, seen)
    torch.testing.assert_close(logits_of(out), whole.logits[:, prompted - 1 : -1], rtol=1e-4, atol=1e-4)
    # What the first word looks at, by its attention map; the prompt itself was read with all.
    row = forced(eager(family), short, out.sequences, seen, output_attentions=True).attentions[method.layer - 1]
    columns = few.last.layout.videos[0].columns
    scores = row[0, :, prompted].mean(0)[columns]
    best = columns[scores.argsort(descending=True, stable=True)[: share(len(columns), 0.3)]]
    assert sorted(best.tolist()) == [c for c in steps[1][0].tolist() if c in columns.tolist()]


def test_dycoke_holds_less_and_what_is_away_comes_back(family):
    asked = prompt(family, *PARTS)
    full, _ = ask(family, "", asked)
    whole = cache_bytes(full.past_key_values)
    out, last = ask(family, "dycoke_cache(keep=0.25, layer=1, similarity=1.0)", asked)
    n = len(last.layout.videos[0].columns)
    entry = whole[0] // out.past_key_values.get_seq_length()
    gone = (n - share(n, 0.25)) * entry
    assert cache_bytes(out.past_key_values) == [whole[0], whole[1] - gone, whole[2] - gone]
    assert cache_bytes(out.past_key_values, away=True) == whole
    layer = out.past_key_values.layers[2]
    layer.select(torch.ones(1, layer.length, dtype=torch.bool), revive=True)
    assert layer.columns.tolist() == [list(range(layer.length))]
    lost, _ = ask(family, "dycoke_cache(keep=0.25, layer=1, revive=False)", asked)
    assert cache_bytes(lost.past_key_values, away=True) == [*cache_bytes(out.past_key_values)[:2], whole[2] - gone]


@pytest.mark.parametrize("spec", list(DROPS)[:3] + list(DROPS)[5:6] + list(MERGES[::2]) + [DYCOKE[0]])
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
            one = few.generate(**alone.inputs, **GREEDY)
        torch.testing.assert_close(logits_of(together)[number], logits_of(one)[0], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("spec", ["fastv(keep=0.4, layer=1)", "holitom_inner(keep=0.4, layer=2)"])
def test_beams(family, spec):
    model = tiny(family)
    both = batch(family, *(prompt(family, *PARTS, seed=seed) for seed in range(2)))
    options = {"num_beams": 3, "num_return_sequences": 1, "length_penalty": 0.0, "output_scores": True}
    with attach(model, spec, items=both.items) as few:
        out = few.generate(**both.inputs, **(GREEDY | options))
        again = compress(model, both.inputs, "", items=both.items).inputs
        likely = recomputed(model, again, out.sequences).log_softmax(2)
    new = likely.shape[1]
    chosen = likely.gather(2, out.sequences[:, -new:, None]).squeeze(2).sum(1)
    torch.testing.assert_close(out.sequences_scores, chosen, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("spec", [DYCOKE[0], "prunevid_inner(keep=0.4, layer=1)"])
def test_beams_of_caches_that_are_cut(family, spec):
    out, _ = ask(family, spec, prompt(family, *PARTS), num_beams=3, num_return_sequences=3)
    first, _ = ask(family, spec, prompt(family, *PARTS), num_beams=1)
    assert out.sequences.shape == (3, first.sequences.shape[1])
    layer = out.past_key_values.layers[2]
    assert layer.columns.shape == (3, layer.keys.shape[2])


class Squares(TorchDispatchMode):
    """The largest tensor that has a row and a column for each place of a sequence."""

    def __init__(self, length):
        super().__init__()
        self.length, self.found = length, 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for part in out if isinstance(out, (tuple, list)) else (out,):
            sizes = part.shape if isinstance(part, torch.Tensor) else ()
            if sum(size >= self.length and size != 200 for size in sizes) > 1:  # the vocabulary has 200 words
                self.found = max(self.found, part.numel())
        return out


@pytest.mark.parametrize("spec", ["fastv(keep=0.5, layer=1)", "flexselect(keep=0.3, layer=1)", DYCOKE[0]])
def test_fused_attention_stays_and_only_rows_are_made(family, spec):
    model, asked = tiny(family), prompt(family, ("text", 80), ("video", 4), ("text", 5))
    kind = language_model(model).config._attn_implementation
    assert kind == "sdpa"
    with attach(model, spec, items=asked.items) as few:
        short = few.compress(**asked.inputs)
        length = short["input_ids"].shape[1]
        # Longer than any other axis of these models but the vocabulary's.
        with Squares(81) as squares, torch.no_grad():
            model(**short, use_cache=True)
        assert length > 81
        assert squares.found == 0
        assert language_model(model).config._attn_implementation == kind


@pytest.mark.parametrize("spec", ["fastv(keep=0.5, layer=1)", "prunevid_inner(keep=0.4, layer=1)", MERGES[0]])
def test_a_second_turn_on_the_kept_cache(family, spec):
    model, asked = tiny(family), prompt(family, *PARTS)
    more = torch.randint(2, 180, (1, 4), generator=torch.Generator().manual_seed(9))
    with attach(model, spec, items=asked.items) as few:
        first = few.generate(**asked.inputs, **GREEDY)
        ids = torch.cat([first.sequences, more], dim=1)
        second = few.generate(
            input_ids=ids, attention_mask=torch.ones_like(ids), past_key_values=first.past_key_values, **GREEDY
        )
        short, length = few.last.inputs, second.sequences.shape[1]
        prompted = short["input_ids"].shape[1]
        whole = {**short, "attention_mask": torch.ones_like(second.sequences)}
        at = lengthened(whole, length - prompted)
        if "prunevid" not in spec:
            again = forced(model, short, second.sequences, positions=at).logits[:, -6:-1]
            torch.testing.assert_close(logits_of(second), again, rtol=1e-4, atol=1e-4)
    if "holitom" not in spec:
        seen = [with_words(mark, length).expand(-1, length, -1).clone() for mark in kept(second, prompted)]
        if "prunevid" in spec:
            for mark in seen[:2]:
                mark[:, :prompted] = True
        whole = forced(model, short, second.sequences, seen, at).logits[:, -6:-1]
        torch.testing.assert_close(logits_of(second), whole, rtol=1e-4, atol=1e-4)
    # Outside the block the cache is refused rather than misread.
    with pytest.raises(ValueError, match="holds fewer entries"):
        model.generate(
            input_ids=ids, attention_mask=torch.ones_like(ids), past_key_values=second.past_key_values, max_new_tokens=1
        )


def test_caches_are_smaller_layer_by_layer(family):
    asked = prompt(family, *PARTS)
    full, _ = ask(family, "", asked)
    whole = cache_bytes(full.past_key_values)
    out, last = ask(family, "pyramid_drop(keep=(0.5, 0.25), layers=(1, 2))", asked)
    n, length = len(last.layout.videos[0].columns), full.past_key_values.get_seq_length()
    assert out.past_key_values.get_seq_length() == length
    stored = [layer.keys.shape[2] for layer in out.past_key_values.layers]
    assert stored == [length, length - n + n // 2, length - n + n // 4]
    assert cache_bytes(out.past_key_values) == [whole[0] * part // length for part in stored]


@pytest.mark.parametrize(
    "spec", ["fastv(keep=0.5, layer=1)", MERGES[0], "sttm_inner(keep=0.4, layer=2, weighted=True)"]
)
def test_labels_and_gradients(family, spec):
    model, asked = copy.deepcopy(tiny(family)), prompt(family, *PARTS)
    labels = asked.inputs["input_ids"].clone()
    labels[:, :-3] = -100
    with attach(model, spec, items=asked.items) as few:
        out = few(**asked.inputs, labels=labels)
        assert few.last.layout.ends.tolist() == [few.last.inputs["input_ids"].shape[1] - 4]
    assert out.logits.shape[:2] == few.last.inputs["input_ids"].shape
    out.loss.backward()
    names = ("vision_tower", "visual", "vision_model")
    vision = next(getattr(model.base_model, name) for name in names if hasattr(model.base_model, name))
    assert sum(float(p.grad.abs().sum()) for p in vision.parameters() if p.grad is not None) > 0


def test_text_alone_is_left_as_it_is(family):
    model, asked = tiny(family), prompt(family, ("text", 7))
    with attach(model, "tome(keep=0.5) | fastv(layer=1) | dycoke_cache(layer=2)") as few:
        out = few.generate(**asked.inputs, **GREEDY)
    assert torch.equal(logits_of(out), logits_of(generate(model, asked.inputs)))


def test_a_chain(family):
    asked = prompt(family, *PARTS)
    out, last = ask(family, "tome(keep=0.5) | fastv(keep=0.5, layer=1) | dycoke_cache(keep=0.25, layer=2)", asked)
    n = last.tokens[0].N
    assert n == last.tokens[0].grid.cells // 2
    text = last.inputs["input_ids"].shape[1] - n + 4
    stored = [layer.keys.shape[2] for layer in out.past_key_values.layers]
    assert stored == [text + n, text + n // 2, text + max(1, n // 4)]


def test_hooks_are_gone(family):
    model, asked = tiny(family), prompt(family, *PARTS)
    stock = generate(model, asked.inputs)
    ask(family, "fastv(keep=0.5, layer=1)", asked)
    with pytest.raises(RuntimeError, match="stop"), attach(model, "fastv(layer=1)"):
        raise RuntimeError("stop")
    # Those of transformers for output_hidden_states stay on the encoder.
    for module in [model, language_model(model), *language_model(model).modules()]:
        assert not module._forward_pre_hooks
        assert not module._forward_hooks
    assert torch.equal(logits_of(generate(model, asked.inputs)), logits_of(stock))


def test_the_gate(family):
    model, asked = copy.deepcopy(tiny(family)), prompt(family, *PARTS)
    with attach(model, "fastv(keep=0.5, layer=2)", items=asked.items) as few:
        layers = language_model(model).layers
        language_model(model).layers = layers[:2]
        with pytest.raises(ValueError, match="nothing was dropped before layer 2"):
            few(**asked.inputs)
        language_model(model).layers = layers
    with attach(model, "fastv(layer=1)"), pytest.raises(ValueError, match="nothing was reduced"):
        model(**asked.inputs)


def test_errors(family):
    model, asked = tiny(family), prompt(family, *PARTS)
    for spec, said in {
        "fastv(layer=3)": "layer 3 is beyond the model's 3 layers; give one of 1 to 2",
        "fastv(layer=99)": "layer 99 is beyond the model's 3 layers; give one of 1 to 2",
        "holitom_inner(layer=99)": "layer 99 is beyond .* 1 to 2",
        "prunevid_inner(layer=99)": "layer 99 is beyond the model's 3 layers; give one of 0 to 1",
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
        with pytest.raises(ValueError, match=said), attach(model, spec):
            pass
    with pytest.raises(ValueError, match="acts in the stage 'llm'"):
        compress(model, asked.inputs, "fastv")
    with pytest.raises(ValueError, match=r"has the stage .llm., but a pipeline accepts only"):
        Pipeline("fastv")
    with attach(model, "fastv(layer=1)", items=asked.items) as few:
        with pytest.raises(ValueError, match="a cache that grows"):
            few.generate(**asked.inputs, cache_implementation="static", max_new_tokens=2)
        short = few.compress(**asked.inputs)
        with pytest.raises(ValueError, match="prompt whole"):
            model(**short | {"input_ids": short["input_ids"][:, :4]})
    with (
        attach(model, "tome(keep=0.5) | sttm_inner(layer=2)", items=asked.items) as few,
        pytest.raises(ValueError, match="sttm_inner works on whole frames"),
    ):
        few(**asked.inputs)
    with (
        attach(model, "prunevid_inner(layer=1)", items=asked.items) as few,
        pytest.raises(ValueError, match="use_cache=True"),
    ):
        few.generate(**asked.inputs, use_cache=False, max_new_tokens=2)
    if family == "qwen3_vl":
        with (
            attach(model, "holitom_inner(layer=1)", items=asked.items) as few,
            pytest.raises(ValueError, match="before layer 2 at the earliest"),
        ):
            few(**asked.inputs)


def test_merging_is_what_it_says(family):
    """HoliTom one token after the other, STTM as the method of the stage tokens on the same hidden states."""
    asked = prompt(family, *PARTS)
    for spec in ("holitom_inner(keep=0.4, layer=2)", "holitom_inner(keep=0.4, layer=2, merge='mean')", MERGES[1]):
        (method,) = registry.build(spec)
        caught = {}

        def catch(layer, args, kwargs, caught=caught):
            caught["hidden"] = args[0]

        model = tiny(family)
        with attach(model, spec, items=asked.items) as few:
            layer = language_model(model).layers[2]
            with layer.register_forward_pre_hook(catch, with_kwargs=True), torch.no_grad():
                out = few(**asked.inputs, use_cache=True)
        made, columns = caught["hidden"][0], out.past_key_values.layers[2].columns[0]
        (video,) = few.last.layout.videos
        with layer.register_forward_pre_hook(catch, with_kwargs=True), torch.no_grad():
            model(**few.last.inputs)
        before = caught["hidden"][0][video.columns]
        stays = torch.isin(video.columns, columns)
        mine = made[torch.isin(columns, video.columns)]
        if method.name == "sttm_inner":
            whole = video.tokens.replace(features=before[None])
            after = registry.build("sttm(keep=0.4)")[0](whole)
            first = [int((after.assignment[0] == token).nonzero()[0]) for token in range(after.N)]
            assert sorted(first) == stays.nonzero()[:, 0].tolist()
            torch.testing.assert_close(mine, after.features[0][torch.tensor(first).argsort()])
            continue
        targets, rest = before[stays], before[~stays]
        into = torch.nn.functional.cosine_similarity(rest[:, None], targets[None], dim=2).argmax(1).tolist()
        wanted, members = targets.clone(), [[row] for row in targets]
        for token, at in zip(rest, into, strict=True):
            wanted[at] = (wanted[at] + token) / 2
            members[at].append(token)
        if method.merge == "mean":
            wanted = torch.stack([torch.stack(rows).mean(0) for rows in members])
        torch.testing.assert_close(mine, wanted, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("spec", ["fastv(keep=0.5, layer=1)", "prunevid_inner(keep=0.4, layer=1)", DYCOKE[0]])
def test_eager_attention_gives_the_same(family, spec):
    """Its masks are numbers to add."""
    same = family.startswith("llava")
    prompts = [prompt(family, ("text", 3 + n), ("video", 3 if same else 3 + n), ("text", 4), seed=n) for n in range(2)]
    both = batch(family, *prompts)
    fused, _ = ask(family, spec, both)
    with attach(eager(family), spec, items=both.items) as few:
        out = few.generate(**both.inputs, **GREEDY)
    torch.testing.assert_close(logits_of(out), logits_of(fused), rtol=1e-4, atol=1e-4)


def test_masks_of_flash_attention(family):
    keys = torch.tensor([[-1, 0, 2], [1, 2, 3]])
    mask = torch.tensor([[1, 1, 1, 1], [0, 1, 1, 1]]).bool()
    found = narrow(mask, keys, keys, first=0, flash=True, padded=True)
    assert found.tolist() == [[False, True, True], [True, True, True]]
    assert narrow(None, keys[1:], keys[1:], first=0, flash=True, padded=False) is None
    assert narrow(None, keys[:, :1], keys, first=0, flash=True, padded=True).tolist() == found.tolist()
    with pytest.raises(ValueError, match="know masks of sdpa, eager and flash"):
        narrow(object(), keys, keys, first=0, flash=False, padded=True)


@pytest.mark.parametrize("spec", ["fastv(keep=0.5, layer=1)", "holitom_inner(keep=0.5, layer=2)", DYCOKE[0]])
def test_half_precision(family, spec):
    model, asked = copy.deepcopy(tiny(family)).to(torch.bfloat16), prompt(family, *PARTS)
    inputs = {
        name: v.bfloat16() if v.is_floating_point() and "pixel" in name else v for name, v in asked.inputs.items()
    }
    with attach(model, spec, items=asked.items) as few:
        out = few.generate(**inputs, **GREEDY)
    assert logits_of(out).isfinite().all()
    assert out.past_key_values.layers[2].keys.dtype == torch.bfloat16


@pytest.mark.parametrize("spec", ["fastv(keep=0.5, layer=1)", "prunevid_inner(keep=0.4, layer=1)"])
def test_words_that_are_guessed_and_taken_back(family, spec):
    """Caches are cropped after a wrong guess."""
    asked = prompt(family, *PARTS)
    plain, _ = ask(family, spec, asked, max_new_tokens=12)
    guessed, _ = ask(family, spec, asked, max_new_tokens=12, prompt_lookup_num_tokens=3)
    assert torch.equal(guessed.sequences, plain.sequences)


def test_labels_padded_on_the_right(family):
    model, asked = tiny(family), prompt(family, *PARTS)
    inputs = dict(asked.inputs)
    inputs["labels"] = inputs["input_ids"].clone()
    inputs["labels"][:, :-3] = -100
    wide = dict(inputs)
    for name, fill in {"input_ids": 0, "attention_mask": 0, "mm_token_type_ids": 0, "labels": -100}.items():
        if name in wide:
            wide[name] = torch.nn.functional.pad(wide[name], (0, 3), value=fill)
    lengths = []
    with attach(model, "fastv(keep=0.5, layer=1)", items=asked.items) as few, torch.no_grad():
        one = few(**inputs)
        lengths.append(few.last.layout.ends.tolist())
        padded = few(**wide)
        lengths.append(few.last.layout.ends.tolist())
    assert lengths[0] == lengths[1]
    torch.testing.assert_close(padded.loss, one.loss, rtol=1e-4, atol=1e-4)


def test_the_table(family):
    for name in registry.layer_names():
        kind = registry.get(name)
        assert issubclass(kind, LayerMethod)
        method = kind()
        assert method.stage == "llm" and method.name == name and method.paper and method.license and method.cost
        (again,) = registry.build(method.spec)
        assert again.spec == method.spec
        assert name not in registry.names()
