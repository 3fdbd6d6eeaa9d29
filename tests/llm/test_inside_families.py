"""Methods inside the language model of every family, on tiny random models with small windows and mixed layers.

Expected values come from the stock decoder layers with eager attention, one after the other, whose inputs (hidden
states, masks, positions) are cut here by hand.
"""

from __future__ import annotations

import copy
import inspect
import warnings
from collections.abc import Callable
from contextlib import ExitStack
from functools import cache, partial
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from fewtokens.llm import attach
from fewtokens.llm.families import FAMILIES
from fewtokens.llm.interface import cache_of, version
from fewtokens.llm.layers.cache import PrunedLayer
from fewtokens.llm.layers.hooks import language_model, output_norm
from fewtokens.llm.layers.kinds import LayerKinds, inside_note
from tests.llm.families import BLOCKS, CONV, INDEXED, LINEAR, TEXT, TUNED, Prompt, batch, layered, make, prompt
from tests.llm.test_families import GREEDY, WORKING, Recomputed, positions, steps
from tests.llm.tiny import IMAGE, VIDEO

BY_FOLDER = {family.folder: family for family in FAMILIES}
FOLDERS = [folder for folder in WORKING if folder not in INDEXED]
HYBRID = [folder for folder in FOLDERS if TEXT.get(folder) in (LINEAR, CONV, BLOCKS)]
each_family = pytest.mark.parametrize("folder", FOLDERS)


@pytest.fixture(autouse=True)
def _quiet():
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        yield


tiny = cache(layered)


@cache
def eager(folder: str) -> Any:
    model = copy.deepcopy(tiny(folder))
    model.set_attn_implementation("eager")
    return model


@cache
def example(folder: str, seed: int = 0) -> Prompt:
    return prompt(folder, ("text", 3 + 2 * seed), ("video", steps(folder)[0]), ("text", 5), seed=seed)


def last_layer(folder: str) -> int:
    return LayerKinds.of(language_model(tiny(folder))).scoring[-1]


class Layers:
    """The stock decoder layers with eager attention, and their inputs for a prompt of all tokens.

    Args:
        text: the language model.
        run: runs the stock model.
    """

    def __init__(self, text: Any, run: Callable[[], Any]) -> None:
        self.text, self.inputs = text, []
        self.deepstack: list[Tensor] = []
        self.visual: Tensor | None = None

        def record(layer: Any, args: Any, kwargs: Any) -> None:
            names = inspect.signature(layer.forward).parameters
            self.inputs.append(dict(zip(names, args, strict=False)) | kwargs)

        def record_text(text: Any, args: Any, kwargs: Any) -> None:
            self.deepstack = kwargs.get("deepstack_visual_embeds") or []
            self.visual = kwargs.get("visual_pos_masks")

        with ExitStack() as hooks:
            hooks.enter_context(text.register_forward_pre_hook(record_text, with_kwargs=True))
            for layer in text.layers:
                hooks.enter_context(layer.register_forward_pre_hook(record, with_kwargs=True))
            run()
        self.hidden = self.inputs[0]["hidden_states"]
        self.length = self.hidden.shape[1]

    def run(self, index: int, hidden: Tensor, columns: Tensor, unseen: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """The output of a layer for some columns [n], and its attention [heads,n,n].

        Args:
            unseen: bool [n,n], keys that queries do not see beyond the model's own mask.
        """
        inputs = {}
        for name, value in self.inputs[index].items():
            if name == "attention_mask" and value is not None and value.ndim == 4:
                value = value[:, :, columns][..., columns]
                if unseen is not None:
                    value = value.masked_fill(unseen, torch.finfo(value.dtype).min)
            elif name == "position_embeddings" and value is not None:
                value = tuple(part[:, columns] for part in value)
            elif name == "position_ids" and value is not None:
                value = value[..., columns]
            elif isinstance(value, Tensor) and value.ndim > 1 and value.shape[1] == self.length:
                value = value[:, columns]
            inputs[name] = value
        maps: list[Tensor] = []
        layer = self.text.layers[index]
        attention = getattr(layer, "self_attn", getattr(layer, "mixer", None))
        with ExitStack() as hooks:
            if attention is not None:
                hooks.enter_context(attention.register_forward_hook(lambda *args: maps.extend(args[2][1:2])))
            hidden = layer(**inputs | {"hidden_states": hidden})
        if index < len(self.deepstack):
            assert self.visual is not None
            row = (self.visual[0].cumsum(0) - 1)[columns]
            hidden = hidden + self.deepstack[index][row.clamp(min=0)] * self.visual[0][columns, None]
        is_map = maps and isinstance(maps[0], Tensor) and maps[0].ndim == 4
        return hidden, maps[0][0] if is_map else None

    def all(
        self, drops: dict[int, Callable[[Tensor, Tensor | None, Tensor | None], Tensor]],
        unseen: dict[int, Tensor] | None = None,
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        """The output of the final norm [n,D] for the columns [n] that remain.

        Args:
            drops: by layer, which columns remain [m], from those before [n] and the attention of the previous layer
                and of this one.
            unseen: by layer, as in `run`, of all columns.
        """
        hidden, columns, before = self.hidden, torch.arange(self.length), None
        for index in range(len(self.text.layers)):
            hide = None if unseen is None or index not in unseen else unseen[index]
            if index in drops:
                _, here = self.run(index, hidden, columns, hide)
                kept = drops[index](columns, before, here)
                hidden, columns = hidden[:, torch.isin(columns, kept)], kept
                hide = None if hide is None else hide[columns][:, columns]
            hidden, before = self.run(index, hidden, columns, hide)
        return output_norm(self.text)(hidden)[0], columns


def stock_layers(folder: str, tokens: list[Any], ids: Tensor | None = None) -> Layers:
    """The stock layers for a prompt with all its tokens, and generated tokens [n] after it."""
    model = eager(folder)
    recomputed = Recomputed(model, example(folder), tokens)
    if ids is not None:
        recomputed.extend(model, ids)
    return Layers(language_model(model), lambda: recomputed.logits(model))


def run(folder: str, spec: str, one: Prompt | None = None, **options: Any) -> tuple[Any, Any, list[Tensor]]:
    """The output of `generate`, the shortened prompt, and the outputs of the final norm in each pass."""
    model, one = tiny(folder), one or example(folder)
    passes: list[Tensor] = []
    hook = output_norm(language_model(model)).register_forward_hook(lambda *args: passes.append(args[2]))
    with hook, attach(model, spec, items=one.items, positions=positions(folder)) as few:
        # A random model may generate placeholders.
        out = few.generate(**copy.copy(one.inputs), **(GREEDY | options), suppress_tokens=[IMAGE, VIDEO])
    return out, few.last, passes


def best(columns: Tensor, scores: Tensor, video: Tensor, count: int) -> Tensor:
    """The columns that remain if the `count` best of the video's stay."""
    is_video = torch.isin(columns, video)
    ranked = scores.masked_fill(~is_video, -1).argsort(descending=True, stable=True)[:count]
    kept = ~is_video
    kept[ranked] = True
    return columns[kept]


def given(columns: Tensor, *_: Any) -> Tensor:
    return columns


def cached(out: Any) -> dict[int, Tensor]:
    """The columns in each shortened layer of the cache."""
    layers = cache_of(out).layers  # type: ignore[union-attr]
    return {index: layer.columns[0] for index, layer in enumerate(layers) if isinstance(layer, PrunedLayer)}


def in_window(folder: str, layer: int, columns: Tensor, length: int) -> Tensor:
    """Those of the columns that a cache of this length still has."""
    window = LayerKinds.of(language_model(tiny(folder))).windows[layer]
    return columns if window is None else columns[1 - window :]


def new_columns(out: Any, last: Any) -> tuple[Tensor, Tensor]:
    """The generated tokens that the model has read, and their columns."""
    start = last.inputs["input_ids"].shape[1]
    ids = out.sequences[0, start:-1]
    return ids, torch.arange(start, start + len(ids))


@each_family
def test_fastv_and_pyramid_drop(folder):
    """The chosen tokens, the prompt, each generated token, and the entries of the caches."""
    late = last_layer(folder)
    for spec, rules in {
        "fastv(keep=0.5, layer=2)": {2: (0.5, False)},
        f"pyramid_drop(keep=(0.6, 0.3), layers=(1, {late}))": {1: (0.6, True), late: (0.3, True)},
    }.items():
        out, last, passes = run(folder, spec)
        video, length = last.layout.videos[0].columns, last.inputs["input_ids"].shape[1]
        kept: dict[int, Tensor] = {}

        def choose(layer, columns, before, here, rules=rules, kept=kept, video=video):
            keep, own = rules[layer]
            count = max(1, int(len(video) * keep + (1e-6 if own else 0.5)))
            kept[layer] = best(columns, (here if own else before)[:, -1].mean(0), video, count)
            return kept[layer]

        hidden, columns = stock_layers(folder, last.tokens).all({layer: partial(choose, layer) for layer in rules})
        assert len(columns) < length
        torch.testing.assert_close(passes[0][0, columns], hidden, rtol=1e-4, atol=2e-4)
        ids, new = new_columns(out, last)
        forced = {layer: partial(given, torch.cat([columns, new])) for layer, columns in kept.items()}
        hidden, columns = stock_layers(folder, last.tokens, ids).all(forced)
        torch.testing.assert_close(torch.cat(passes[1:], 1)[0], hidden[-len(new) :], rtol=1e-4, atol=2e-4)
        entries = cached(out)
        for layer in LayerKinds.of(language_model(tiny(folder))).scoring:
            dropped = [columns for at, columns in kept.items() if at <= layer]
            assert (layer in entries) == bool(dropped)
            if dropped:
                expected = in_window(folder, layer, torch.cat([dropped[-1], new]), length + len(new))
                assert torch.equal(entries[layer], expected)


@each_family
def test_a_full_budget_is_bit_equal_to_stock(folder):
    stock, _, _ = run(folder, "")
    for spec in (
        "fastv(keep=1.0, layer=2)",
        f"flexselect(keep=1.0, layer={last_layer(folder)})",
        "prunevid_inner(keep=1.0, layer=1)",
        "dart(keep=1.0, layer=2)",
        "dycoke_cache(keep=1.0, layer=2)",
    ):
        out, _, _ = run(folder, spec)
        assert torch.equal(torch.cat(out.logits), torch.cat(stock.logits)), spec


def kept_of(folder: str, out: Any, last: Any) -> Tensor:
    """The columns of the prompt that remain in the last layer, if it has no window."""
    layer = last_layer(folder)
    if LayerKinds.of(language_model(tiny(folder))).windows[layer] is not None:
        pytest.skip("every cache has a window")
    columns = cached(out)[layer]
    return columns[columns < last.inputs["input_ids"].shape[1]]


@each_family
@pytest.mark.parametrize("spec", ["flexselect(keep=0.4, layer=1)", "dart(keep=0.4, layer=2, pivots=(2, 1))"])
def test_scores_of_the_question_and_keys(folder, spec):
    out, last, passes = run(folder, spec)
    video, kept = last.layout.videos[0].columns, kept_of(folder, out, last)
    layers, count = stock_layers(folder, last.tokens), int(len(video) * 0.4 + 1e-6)
    assert int(torch.isin(kept, video).sum()) == count
    layer = 1 if "flexselect" in spec else 2
    if layer == 1:
        question = last.layout.question()[0].nonzero()[:, 0]

        def choose(columns: Tensor, before: Any, here: Tensor) -> Tensor:
            return best(columns, here[:, question].amax((0, 1)), video, count)
    else:
        # Video pivots have the largest keys, which eager attention receives too.
        norm = stock_keys(folder, last.tokens, layer - 1).abs().sum((0, 2))
        assert torch.isin(video[norm[video].topk(2).indices], kept).all()

        def choose(columns: Tensor, before: Any, here: Any) -> Tensor:
            return kept

    hidden, columns = layers.all({layer: choose})
    assert torch.equal(columns, kept)
    torch.testing.assert_close(passes[0][0, columns], hidden, rtol=1e-4, atol=2e-4)


def stock_keys(folder: str, tokens: list[Any], layer: int) -> Tensor:
    """The keys [heads,n,d] with which a layer of the stock model attends."""
    keys: list[Tensor] = []

    def record(module: Any, query: Tensor, key: Tensor, *args: Any, **kwargs: Any) -> Any:
        if module.layer_idx == layer:
            keys.append(key[0])
        return ALL_ATTENTION_FUNCTIONS["sdpa"](module, query, key, *args, **kwargs)

    AttentionInterface.register("sdpa_recorded", record)
    AttentionMaskInterface.register("sdpa_recorded", ALL_MASK_ATTENTION_FUNCTIONS["sdpa"])
    model = copy.deepcopy(tiny(folder))
    language_model(model).config._attn_implementation = "sdpa_recorded"
    Recomputed(model, example(folder), tokens).logits(model)
    return keys[0]


@each_family
@pytest.mark.parametrize("spec", ["prunevid_inner(keep=0.4, layer=1)", "dycoke_cache(keep=0.3, layer=2, revive=False)"])
def test_tokens_that_leave_the_caches(folder, spec):
    """Generated tokens do not see them in any layer, or in those after the first two."""
    out, last, passes = run(folder, spec)
    kept, length = kept_of(folder, out, last), last.inputs["input_ids"].shape[1]
    assert len(kept) < length
    ids, new = new_columns(out, last)
    unseen = torch.zeros(length + len(new), length + len(new), dtype=torch.bool)
    unseen[length:, :length] = ~torch.isin(torch.arange(length), kept)
    early = "prunevid" in spec
    hide = dict.fromkeys((0, 1) if early else range(2, 5), unseen)
    drops: Any = {2: partial(given, torch.cat([kept, new]))} if early else {}
    layers = stock_layers(folder, last.tokens, ids)
    hidden, _ = layers.all(drops, hide)
    torch.testing.assert_close(torch.cat(passes[1:], 1)[0], hidden[-len(new) :], rtol=1e-4, atol=2e-4)
    if not early:
        video = last.layout.videos[0].columns
        columns = torch.arange(len(unseen))
        hidden, _ = layers.run(0, layers.hidden, columns, None)
        _, maps = layers.run(1, hidden, columns, None)
        assert maps is not None
        expected = best(columns[:length], maps[:, length, :length].mean(0), video, max(1, int(len(video) * 0.3 + 1e-6)))
        assert torch.equal(kept, expected)


@each_family
@pytest.mark.parametrize(
    "spec",
    [
        "holitom_inner(keep=0.5, layer=2)",
        "sttm_inner(keep=0.4, layer=2)",
        "sparsevlm(keep=(0.3,), layers=(1,), recycle=0.9)",
    ],
)
def test_merging_with_a_cache_equals_merging_without(folder, spec):
    if folder == "ernie4_5_vl_moe":
        pytest.skip("stock does not extend its token types without a cache")
    out, _, _ = run(folder, spec)
    again, _, _ = run(folder, spec, use_cache=False)
    torch.testing.assert_close(torch.cat(out.logits), torch.cat(again.logits), rtol=1e-4, atol=2e-4)
    assert cached(out)
    if folder != "idefics2":  # generated tokens see only the last latents, which are nearly equal
        stock, _, _ = run(folder, "")
        assert (torch.cat(out.logits) - torch.cat(stock.logits)).abs().max() > 1e-4


@each_family
def test_a_batch_padded_on_the_left(folder):
    late = last_layer(folder)
    prompts = [example(folder), example(folder, 1)]
    both = batch(folder, *prompts)
    for spec in ("fastv(keep=0.5, layer=2)", f"pyramid_drop(keep=(0.6, 0.3), layers=(1, {late}))"):
        out, _, _ = run(folder, spec, both)
        for row, one in enumerate(prompts):
            alone, _, _ = run(folder, spec, one)
            logits = torch.stack(out.logits)[:, row]
            torch.testing.assert_close(logits, torch.cat(alone.logits), rtol=1e-4, atol=2e-4)


@each_family
def test_a_static_cache_is_refused(folder):
    with pytest.raises(ValueError, match="a cache that grows"):
        run(folder, "fastv(keep=0.5, layer=2)", cache_implementation="static")


@pytest.mark.parametrize("folder", HYBRID)
def test_layers_with_a_state(folder):
    note = inside_note(language_model(tiny(folder)))
    assert note.startswith("scores only from layers with attention, not from ")
    with pytest.raises(ValueError, match=r"reads the attention of layer 0, which is (linear_att|conv).*are 1, 3"):
        run(folder, "fastv(layer=1)")
    with pytest.raises(ValueError, match=r"reads the attention of layer 2"):
        run(folder, "dycoke_cache(layer=3)")
    with pytest.warns(UserWarning, match=r"prunevid_inner.* removes nothing from the layers without keys and values"):
        run(folder, "prunevid_inner(layer=1)")
    # Methods that score no tokens can act before any layer.
    out, _, _ = run(folder, "sttm_inner(keep=0.4, layer=1)")
    again, _, _ = run(folder, "sttm_inner(keep=0.4, layer=1)", use_cache=False)
    torch.testing.assert_close(torch.cat(out.logits), torch.cat(again.logits), rtol=1e-4, atol=2e-4)


@pytest.mark.parametrize("folder", WORKING)
def test_the_column_of_the_table(folder):
    assert BY_FOLDER[folder].inside == (inside_note(language_model(tiny(folder))) or "all")


def test_other_models_have_no_note():
    assert inside_note(language_model(tiny("llava"))) == inside_note(language_model(tiny("gemma3"))) == ""


@pytest.mark.parametrize("folder", [folder for folder in WORKING if folder in INDEXED])
def test_layers_with_an_index_are_refused(folder):
    model = tiny(folder)
    with pytest.raises(ValueError, match=r"choose their keys by an index: (indexed|minimax)"), attach(model, "fastv"):
        pass
    assert "by an index" in inside_note(language_model(model))


@pytest.mark.skipif(version() < (5, 23), reason="another config of Gemma 4")
def test_layers_that_share_keys_are_refused():
    tuned = copy.deepcopy(TUNED["gemma4"])
    tuned["text_config"] |= {"num_hidden_layers": 4, "num_kv_shared_layers": 2}
    tuned["text_config"]["layer_types"] *= 2
    model = make("gemma4", tuned)
    with pytest.raises(ValueError, match="layers that share the keys of others"), attach(model, "fastv"):
        pass


def test_averaged_positions_require_one_rotary_embedding():
    with pytest.raises(ValueError, match="only where all layers have the same rotary embedding"):
        run("gemma3", "sttm_inner(keep=0.4, layer=1, positions='average')")
    with pytest.raises(ValueError, match="no rotary embedding to average"):
        run("nemotron_h_omni", "sttm_inner(keep=0.4, layer=1, positions='average')")


def test_windows_and_flash_attention():
    model = copy.copy(tiny("gemma3"))
    text = language_model(model)
    own = text.config._attn_implementation
    text.config._attn_implementation = "flash_attention_2"
    try:
        with pytest.raises(ValueError, match="attn_implementation='sdpa'"), attach(model, "fastv(layer=2)"):
            pass
    finally:
        text.config._attn_implementation = own
