"""Forward pre-hooks on decoder layers through which methods remove tokens.

The pre-hook of a layer shortens its inputs: hidden states, rotary embeddings (so positions are unchanged), masks, and
whatever else has a value for each column. Removed columns are stored and put back after the last layer, so that logits
have the length that the caller expects; only the caches of layers are shorter. Windows count columns of the original
prompt, and the state of a layer without attention is that of the remaining columns.

During generation each layer's cache knows which columns it has, and the pre-hook cuts the model's mask to them.
"""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from fewtokens.core.layer_method import (
    CachePoint,
    CacheState,
    LayerDecision,
    LayerMethod,
    LayerState,
    PrunePoint,
    VideoPlacement,
)
from fewtokens.core.plan import take_rows
from fewtokens.core.shapes import shape_repr
from fewtokens.llm.backends.base import backend_of
from fewtokens.llm.features import is_reduced, layout_of
from fewtokens.llm.interface import cache_of, is_filled, layer_cache, unsupported
from fewtokens.llm.layers.attention import AttentionInputs, attention_inputs, attention_rows
from fewtokens.llm.layers.cache import PrunedLayer, check_growing, prune_layer, pruned_layer, read_only, to_slots
from fewtokens.llm.layers.kinds import LayerKinds
from fewtokens.llm.layers.masks import narrow_mask, window_mask
from fewtokens.llm.layout import Layout


@dataclass
class Skip:
    """The tokens that skip a layer, until its output is known.

    Attributes:
        hidden: [B,M,D], the input of the layer, with the tokens that skip it.
        slots: int64 [B,m], the indices of the others, -1 is padding; None if none skips it.
        gate: [B,m,1], the factor of what the layer adds to a token; None for 1.
        columns, padded: those of the run before.
    """

    hidden: Tensor
    slots: Tensor | None
    gate: Tensor | None
    columns: Tensor | None
    padded: bool

    __repr__ = shape_repr

    def finish(self, output: Tensor) -> Tensor:
        """The output [B,M,D] of the layer for all tokens, from that [B,m,D] of those that did not skip it."""
        if self.gate is not None:
            before = self.hidden if self.slots is None else take_columns(self.hidden, self.slots)
            # Text, whose gate is 1, is bit-equal.
            output = torch.where(self.gate == 1, output, torch.lerp(before, output, self.gate.to(output.dtype)))
        return output if self.slots is None else _put(self.hidden, self.slots, output)


@dataclass
class Run:
    """One pass through the model.

    Attributes:
        layout: of the prompt; None during generation, or if the prompt is text only.
        real: bool [B,K], columns that are not padding; None if there is no padding.
        deep: whether the prompt's features include DeepStack features.
        deepstack: the number of first layers after which features are added.
        columns: int64 [B,M], the remaining columns, -1 is padding; None if no column was removed.
        padded: whether some of `columns`, or of `real`, are padding.
        cuts: inputs of the layers and what is left of them for these columns, by the identity of the input.
        rope: the rotary embedding of the first layer, and the one of a method that replaces it, [B,L,d] each.
        full: [B,L,D], each column as it was when it was removed.
        scores: [B,L] by method and prune point.
        keys: [B,L,heads*d] by method and prune point.
        raters: bool [B,L], the question tokens that score the tokens, by method; only if they are chosen.
        done: the prune points that were reached, by method and prune point.
        finished: whether the last layer has run.
        remaining: the number of video tokens from a layer on, by layer; only layers before which tokens were removed.
        active: bool [B,L], columns that a method keeps in the caches of the next layers; None changes nothing.
        skips: of the layer that is running.
        restored: whether all columns were restored after the last layer, for DeepStack.
    """

    layout: Layout | None
    real: Tensor | None
    deep: bool = False
    deepstack: int = 0
    columns: Tensor | None = None
    padded: bool = False
    cuts: dict[tuple[int, bool], tuple[Any, Any]] = field(default_factory=dict)
    rope: tuple[Any, tuple[Tensor, ...]] | None = None
    full: Tensor | None = None
    scores: dict[tuple[int, int], Tensor] = field(default_factory=dict)
    keys: dict[tuple[int, int], Tensor] = field(default_factory=dict)
    raters: dict[int, Tensor] = field(default_factory=dict)
    done: set[tuple[int, int]] = field(default_factory=set)
    finished: bool = False
    remaining: dict[int, Tensor] = field(default_factory=dict)
    active: Tensor | None = None
    skips: list[Skip] = field(default_factory=list)
    restored: bool = False

    __repr__ = shape_repr

    def cut(self, source: Any, make: Callable[[], Any], *, state: bool = False) -> Any:
        """Returns what `make` returned for this input of a layer, which most layers share.

        Args:
            state: whether it is for a layer without attention, whose masks are of another type.
        """
        key = id(source), state
        if key not in self.cuts:
            self.cuts[key] = source, make()  # the source is kept, so that no other gets its identity
        return self.cuts[key][1]


class LayerRuntime:
    """Carries out the decisions of methods inside one model.

    Args:
        model: a model that takes precomputed features (`fewtokens llm-families`), with its language-model head.
        methods: methods of the stage "llm", in order.

    Attributes:
        layer_tokens: the number of video tokens in each layer during the last prefill, summed over the prompts.

    Raises:
        ValueError: the model does not have a layer of the methods, or the methods cannot act in its layers.

    Warns if some layers that a method would remove from caches have a state instead.
    """

    def __init__(self, model: Any, methods: Sequence[LayerMethod]) -> None:
        self.model, self.methods, self.backend = model, list(methods), backend_of(model)
        self.text = language_model(model)
        self.depth = len(self.text.layers)
        self.prune_points = [method.prune_points(self.depth) for method in self.methods]
        self.kinds = LayerKinds.of(self.text)
        if self.flash and any(self.kinds.windows):
            raise ValueError(
                "methods inside a language model with windows require another attention function than flash attention; "
                "load the model with attn_implementation='sdpa'"
            )
        for method in self.methods:
            for layer, first in method.named_layers(self.depth):
                if first >= self.depth:
                    later = first - layer
                    raise ValueError(
                        f"{method.spec}: layer {layer} is beyond the model's {self.depth} layers; use one of "
                        f"{1 - later} to {self.depth - 1 - later}"
                    )
        self.cache_points = [method.cache_point(self.depth) for method in self.methods]
        self.cut_layers = [None if point is None else self._first_cut(point) for point in self.cache_points]
        for method, points, cached in zip(self.methods, self.prune_points, self.cache_points, strict=True):
            self._check_attention(method, points, cached)
        self.run: Run | None = None
        self.layer_tokens: list[int] = []

    @property
    def flash(self) -> bool:
        return "flash" in (self.text.config._attn_implementation or "")

    def _first_cut(self, point: CachePoint) -> int | None:
        """The first layer whose cache a method prunes during generation; None if there is none."""
        return next((layer for layer in self.kinds.scoring if layer >= point.layer), None)

    def _check_attention(self, method: LayerMethod, points: Sequence[PrunePoint], cached: CachePoint | None) -> None:
        """Checks that the layers whose attention a method reads have attention."""
        read = [layer for point in points for layer in (point.score_layer, point.key_layer)]
        read += [] if cached is None else [cached.score_layer]
        for layer in read:
            if layer is not None and not self.kinds.attends[layer]:
                raise ValueError(
                    f"{method.spec} reads the attention of layer {layer}, which is {self.kinds.names[layer]}; the "
                    f"layers with attention are {', '.join(map(str, self.kinds.scoring))}"
                )
        first = 0 if method.prunes_earlier else None if cached is None else cached.layer
        if first is not None and not all(self.kinds.attends[first:]):
            if not any(self.kinds.attends[first:]):
                raise ValueError(f"{method.spec}: no layer from {first} on has a cache of keys and values")
            warnings.warn(
                f"{method.spec} removes nothing from the layers without keys and values ({self.kinds.stateful})",
                stacklevel=2,
            )

    @contextmanager
    def attach(self) -> Iterator[LayerRuntime]:
        """Registers the hooks, and removes them at the end."""
        with ExitStack() as hooks:
            hooks.callback(setattr, self, "run", None)
            # Each is entered immediately after it is registered, so that it is removed even after an exception.
            enter = hooks.enter_context
            causal_lm = self.backend.causal_lm(self.model)
            enter(causal_lm.register_forward_pre_hook(self._begin, with_kwargs=True))
            enter(causal_lm.register_forward_hook(self._end, always_call=True))
            enter(self.text.register_forward_pre_hook(self._note_deepstack, with_kwargs=True))
            enter(output_norm(self.text).register_forward_pre_hook(self._restore_columns))
            for index, layer in enumerate(self.text.layers):
                enter(layer.register_forward_pre_hook(partial(self._before, index), with_kwargs=True))
                enter(layer.register_forward_hook(partial(self._after, index)))
            yield self

    def _begin(self, model: Any, args: Any, kwargs: dict[str, Any]) -> None:
        for method in self.methods:
            method.begin()
        features = self.backend.input_features(self.model, kwargs).values()
        if any(is_reduced(outputs) and layout_of(outputs) is None for outputs in features):
            raise ValueError(
                "methods inside a language model require the prompt in one pass; remove prefill_chunk_size"
            )
        layouts = map(layout_of, features)
        layout = next((layout for layout in layouts if layout is not None and layout.videos), None)
        mask = kwargs.get("attention_mask")
        real = mask.bool() if isinstance(mask, Tensor) and mask.ndim == 2 else None
        ids = kwargs.get("input_ids")
        ids = args[0] if ids is None and args else ids
        ids = kwargs.get("inputs_embeds") if ids is None else ids
        if layout is not None:
            assert ids is not None
            cache = cache_of(kwargs)
            if cache is not None:
                check_growing(cache)
            if is_filled(cache):
                raise ValueError("a prompt with a video requires an empty cache; start with a new one")
            if ids.shape[1] < layout.visual.shape[1]:
                raise ValueError(
                    "methods inside a language model require the prompt in one pass; remove prefill_chunk_size"
                )
            for method in self.methods:
                if method.prunes_earlier and ids.shape[1] > layout.visual.shape[1]:
                    raise ValueError(f"{method.name} removes tokens from caches; generate with use_cache=True")
            layout = layout.expand(*ids.shape[:2])
        padded = layout is not None and real is not None and not bool(real.all())
        deep = any(outputs.get("deepstack_features") is not None for outputs in features)
        self.run = Run(layout, real, deep, padded=padded)

    def _end(self, model: Any, args: Any, output: Any) -> None:
        run, self.run = self.run, None
        if run is None or run.layout is None or not run.finished:
            return
        for method_index, (method, prune_points) in enumerate(zip(self.methods, self.prune_points, strict=True)):
            for point_index, point in enumerate(prune_points):
                if (method_index, point_index) not in run.done:
                    raise ValueError(
                        f"{method.spec}: nothing was dropped before layer {point.layer}, which did not run; the model "
                        "ran fewer layers than it has"
                    )
        count, self.layer_tokens = int(run.layout.video().sum()), []
        for index in range(self.depth):
            count = int(run.remaining.get(index, count))
            self.layer_tokens.append(count)

    def _note_deepstack(self, text: Any, args: Any, kwargs: dict[str, Any]) -> None:
        if self.run is not None:
            if self.run.deep and "deepstack_visual_embeds" not in kwargs:
                raise unsupported("the language model receives DeepStack features under another name")
            self.run.deepstack = len(kwargs.get("deepstack_visual_embeds") or ())

    def _restore_columns(self, norm: Any, args: Any) -> Any:
        run = self.run
        if run is None:
            return None
        run.finished = True
        return None if run.columns is None else (_restore(run, args[0]), *args[1:])

    def _after(self, index: int, layer: Any, args: Any, output: Any) -> Any:
        run = self.run
        if run is None:
            return None
        while run.skips:
            skip = run.skips.pop()
            output, run.columns, run.padded = skip.finish(output), skip.columns, skip.padded
            run.cuts.clear()
        # DeepStack adds to columns of the full prompt, so all of them are restored.
        if run.columns is None or index >= run.deepstack:
            return output
        run.restored = True
        return _restore(run, output)

    def _before(self, index: int, layer: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        run = self.run
        if run is None:
            return None
        hidden = args[0] if args else kwargs["hidden_states"]
        inputs = {**kwargs, "hidden_states": hidden}
        if len(args) > 1:
            names = list(inspect.signature(layer.forward).parameters)
            inputs |= zip(names[1:], args[1:], strict=False)
        required = ["attention_mask"] + ["position_embeddings"] * hasattr(self.text, "rotary_emb")
        if missing := [name for name in required if name not in inputs]:
            raise unsupported(f"decoder layers receive no {' and no '.join(missing)}")
        process = self._process_token if run.layout is None else self._process_prompt
        process(index, layer, inputs, run)
        return ((inputs.pop("hidden_states"),), inputs) if args else (args, inputs)

    def _process_prompt(self, index: int, layer: Any, inputs: dict[str, Any], run: Run) -> None:
        """Shortens `inputs`, the inputs of layer `index` for a prompt."""
        original = dict(inputs)
        if run.columns is not None:
            if run.restored:
                run.restored = False
                inputs["hidden_states"] = take_columns(inputs["hidden_states"], run.columns)
            self._shorten(index, inputs, original, run)
        if index == 0:
            self._choose_raters(inputs["hidden_states"], run)
        attention: AttentionInputs | None = None
        for method_index, (method, prune_points) in enumerate(zip(self.methods, self.prune_points, strict=True)):
            for point_index, point in enumerate(prune_points):
                if attention is None and index in (point.score_layer, point.key_layer):
                    attention = attention_inputs(self.text.config, layer, inputs)
                if attention is not None and point.score_layer == index:
                    raters = run.raters.get(method_index)
                    run.scores[method_index, point_index] = self._score(method, attention, run, raters)
                if attention is not None and point.key_layer == index:
                    run.keys[method_index, point_index] = _by_column(run, attention.flat_keys())
                if point.layer == index:
                    self._drop(method, (method_index, point_index), index, inputs, original, run)
                    attention = None
        if not self.kinds.attends[index]:
            return
        cache = layer_cache(inputs)
        cut = any(point is not None and index >= point.layer for point in self.cache_points)
        if cache is not None and (run.columns is not None or cut):
            columns = _columns(run, inputs["hidden_states"])
            pruned = prune_layer(cache, index, columns)
            pruned.expect(columns, run.layout.visual.shape[1], run.padded)  # type: ignore[union-attr]
            pruned.notes["video"] = run.layout.video()  # type: ignore[union-attr]

    def _process_token(self, index: int, layer: Any, inputs: dict[str, Any], run: Run) -> None:
        """Cuts the mask of tokens after the prompt to the entries of the layer's cache."""
        cache = layer_cache(inputs) if self.kinds.attends[index] else None
        if cache is None:
            return
        for method, point, first in zip(self.methods, self.cache_points, self.cut_layers, strict=True):
            if point is not None and first is not None:
                self._cut_cache(method, point, first, index, layer, inputs, run)
        pruned = pruned_layer(cache, index)
        if pruned is None or not pruned.is_initialized:
            return
        hidden = inputs["hidden_states"]
        new = torch.arange(hidden.shape[1], device=hidden.device).expand(len(hidden), -1) + pruned.length
        keys = torch.cat([pruned.columns, new], 1)
        mask = inputs.get("attention_mask")
        if pruned.window is None:
            mask = narrow_mask(mask, new, keys, first=pruned.length, flash=self.flash, padded=pruned.padded)
        else:
            mask = window_mask(mask, new, keys, pruned.window, run.real)
        inputs["attention_mask"] = mask
        pruned.ready = True

    def _cut_cache(
        self, method: LayerMethod, point: CachePoint, first: int, index: int, layer: Any, inputs: dict[str, Any],
        run: Run,
    ) -> None:  # fmt: skip
        """Carries out the decision of a method at its cache point, from the layer `first` on."""
        cache: Any = layer_cache(inputs)
        cut = pruned_layer(cache, first)
        # Several tokens in one pass are the next question, which is read with the remaining entries.
        if cut is None or "video" not in cut.notes or inputs["hidden_states"].shape[1] != 1:
            return
        if index == point.score_layer:
            run.active = self._choose_cached(method, point, layer, inputs, cache, cut, run)
        elif index >= first and run.active is not None:
            pruned = pruned_layer(cache, index)
            assert pruned is not None
            pruned.select(run.active, revive=point.revive)

    def _choose_cached(
        self, method: LayerMethod, point: CachePoint, layer: Any, inputs: dict[str, Any], cache: Any, cut: PrunedLayer,
        run: Run,
    ) -> Tensor | None:  # fmt: skip
        """The columns to keep in the caches of the next layers, bool [B,length]; None if nothing changes."""
        previous = cut.notes.get("scores")
        if previous is not None and not point.revive:
            return None
        hidden, video = inputs["hidden_states"], cut.notes["video"]
        pruned, stored = pruned_layer(cache, point.score_layer), cache.layers[point.score_layer]
        end, n = stored.get_seq_length(), stored.keys.shape[2]  # with a window, the last n columns
        all_columns = torch.arange(end - n, end, device=hidden.device).expand(len(hidden), -1)
        columns = all_columns if pruned is None else pruned.columns
        real = columns >= 0
        if run.real is not None:
            real = real & run.real.gather(1, columns.clamp(min=0))
        real = nn.functional.pad(real, (0, 1), value=True)
        # The newest token sees all of them.
        attention = attention_inputs(
            self.text.config, layer, inputs | {"attention_mask": None}, read_only(cache, point.score_layer)
        )
        scores = attention_rows(attention, torch.zeros_like(columns[:, :1]), real)[:, :-1]
        length = video.shape[1]
        is_video = video.gather(1, columns.clamp(min=0, max=length - 1)) & (columns < length) & (columns >= 0)
        targets = columns.masked_fill(~is_video, length)
        scores = scores.new_zeros(len(scores), length + 1).scatter(1, targets, scores)[:, :-1]
        cached = video.new_zeros(len(scores), length + 1).scatter(1, targets, True)[:, :-1]
        selected = method.choose_cached(CacheState(scores, video, cached, previous, cut.notes.get("selected")))
        cut.notes["scores"] = scores
        if selected is None:
            return None
        cut.notes["selected"] = selected
        return nn.functional.pad(selected | ~video, (0, cut.length - length), value=True)

    def _shorten(self, index: int, inputs: dict[str, Any], original: dict[str, Any], run: Run) -> None:
        """Sets the inputs of layer `index` to those of the remaining columns, out of the `original` ones for all."""
        assert run.columns is not None and run.layout is not None
        columns, length, attends = run.columns, run.layout.visual.shape[1], self.kinds.attends[index]
        for name, value in original.items():
            by_column = isinstance(value, Tensor) and value.ndim > 1 and value.shape[1] == length
            if name == "attention_mask":
                make = self._attention_mask if attends else self._state_mask
                inputs[name] = run.cut(value, partial(make, value, run), state=not attends)
            elif name == "position_embeddings" and value is not None:
                inputs[name] = run.cut(value, partial(self._rotary, value, run))
            elif name == "position_ids" and (self.flash or not by_column or value.ndim > 2):
                # The rotary embeddings contain them; flash attention would take ids with gaps for packed sequences.
                inputs[name] = None
            elif name != "hidden_states" and by_column:
                inputs[name] = run.cut(value, partial(take_columns, value, columns))

    def _rotary(self, parts: tuple[Tensor, ...], run: Run) -> tuple[Tensor, ...]:
        assert run.columns is not None
        if run.rope is not None:
            if run.rope[0] is not parts[0]:
                raise ValueError("positions can be averaged only where all layers have the same rotary embedding")
            parts = run.rope[1]
        return tuple(take_columns(part, run.columns) for part in parts)

    def _attention_mask(self, mask: Any, run: Run) -> Tensor | None:
        assert run.columns is not None
        return narrow_mask(mask, run.columns, run.columns, first=0, flash=self.flash, padded=run.padded)

    def _state_mask(self, mask: Any, run: Run) -> Tensor | None:
        """Layers with a state take zeros at padding, which is in front."""
        assert run.columns is not None
        return (run.columns >= 0).long() if run.padded else None

    def _choose_raters(self, embeddings: Tensor, run: Run) -> None:
        assert run.layout is not None
        for index, method in enumerate(self.methods):
            if method.scoring_queries == "text":
                question = run.layout.question()
                raters = method.raters(embeddings, run.layout.video(), question)
                if raters is not None:
                    run.raters[index] = raters

    def _score(self, method: LayerMethod, attention: AttentionInputs, run: Run, raters: Tensor | None) -> Tensor:
        """The attention that a method reads, by column of the full prompt, float32 [B,L]."""
        assert run.layout is not None
        layout = run.layout
        columns = _columns(run, attention.queries.transpose(1, 2))
        is_query = torch.arange(layout.visual.shape[1], device=columns.device) == layout.ends[:, None]
        if method.scoring_queries == "text":
            question = layout.question() if raters is None else raters
            is_query = torch.where(question.any(1, keepdim=True), question, is_query)
        real = columns >= 0
        queries = to_slots(is_query.gather(1, columns.clamp(min=0)) & real)
        rows = attention_rows(attention, queries, real, pool=method.pool)
        return _by_column(run, rows[..., None])[..., 0]

    def _drop(
        self, method: LayerMethod, key: tuple[int, int], index: int, inputs: dict[str, Any], original: dict[str, Any],
        run: Run,
    ) -> None:  # fmt: skip
        """Removes tokens before layer `index`, at prune point `key[1]` of method `key[0]`."""
        assert run.layout is not None
        layout, hidden = run.layout, inputs["hidden_states"]
        columns = _columns(run, hidden)
        rope = tuple(part.expand(len(hidden), -1, -1) for part in inputs.get("position_embeddings") or ())
        real = columns >= 0
        video = layout.video()
        is_video = video.gather(1, columns.clamp(min=0)) & real
        scores = run.scores.get(key)
        if scores is not None:
            scores = scores.gather(1, columns.clamp(min=0))
        slot = torch.full((len(hidden), video.shape[1] + 1), -1, device=hidden.device)
        slot_index = torch.arange(columns.shape[1], device=hidden.device).expand_as(columns)
        slot = slot.scatter(1, columns.masked_fill(~real, video.shape[1]), slot_index)
        videos = [
            VideoPlacement(placed.row, slot[placed.row, placed.columns], placed.tokens) for placed in layout.videos
        ]
        keys = run.keys.get(key)
        if keys is not None:
            keys = take_columns(keys, columns)
        question = layout.question().gather(1, columns.clamp(min=0)) & real
        # Not the module itself: its pre-hook ends the pass.
        norm = output_norm(self.text).forward
        own_norm = input_norm(self.text.layers[index])
        state = LayerState(hidden, rope, is_video, video.sum(1), scores, videos, question, norm, keys, own_norm)
        decision = method.choose(state, key[1])
        run.done.add(key)
        survives = real & (~is_video | decision.kept)
        if self.prune_points[key[0]][key[1]].skips:
            self._skip(decision, survives, is_video, index, inputs, original, run)
            return
        if decision.hidden is None and bool((survives | ~real).all()):
            return
        if decision.hidden is not None and index < run.deepstack:
            raise ValueError(
                f"{method.spec}: DeepStack adds features to single tokens after the first {run.deepstack} layers, so "
                f"layer {run.deepstack} is the first before which tokens can be merged"
            )
        run.remaining[index] = (survives & is_video).sum()
        run.full = hidden if run.columns is None else _restore(run, hidden)
        slots = to_slots(survives)
        hidden = hidden if decision.hidden is None else decision.hidden
        if decision.rope:
            first, parts = run.rope or (original["position_embeddings"][0], original["position_embeddings"])
            full = (part.expand(len(hidden), -1, -1) for part in parts)
            run.rope = first, tuple(_put(part, columns, new) for part, new in zip(full, decision.rope, strict=True))
        run.columns = columns.gather(1, slots.clamp(min=0)).masked_fill(slots < 0, -1)
        run.padded = bool((slots < 0).any())
        run.cuts.clear()
        inputs["hidden_states"] = take_columns(hidden, slots)
        self._shorten(index, inputs, original, run)
        cache = layer_cache(inputs)
        if method.prunes_earlier and cache is not None:
            selected = run.columns.new_zeros(len(columns), video.shape[1] + 1, dtype=torch.bool)
            selected = selected.scatter(1, run.columns.masked_fill(run.columns < 0, video.shape[1]), True)[:, :-1]
            for earlier in (layer for layer in self.kinds.scoring if layer < index):
                all_columns = torch.arange(video.shape[1], device=hidden.device).expand_as(video)
                prune_layer(cache, earlier, all_columns).select(selected)

    def _skip(
        self, decision: LayerDecision, survives: Tensor, is_video: Tensor, index: int, inputs: dict[str, Any],
        original: dict[str, Any], run: Run,
    ) -> None:  # fmt: skip
        """Shortens `inputs` to the columns that do not skip layer `index`, bool [B,M]; `_after` restores the others."""
        hidden, columns = inputs["hidden_states"], _columns(run, inputs["hidden_states"])
        slots = None if bool((survives | (columns < 0)).all()) else to_slots(survives)
        gate = None
        if decision.gate is not None:
            gate = decision.gate.masked_fill(~is_video, 1)[..., None]
            gate = gate if slots is None else take_columns(gate, slots)
        run.skips.append(Skip(hidden, slots, gate, run.columns, run.padded))
        run.remaining[index], run.remaining[index + 1] = (survives & is_video).sum(), is_video.sum()
        if slots is None:
            return
        run.columns = columns.gather(1, slots.clamp(min=0)).masked_fill(slots < 0, -1)
        run.padded = bool((slots < 0).any())
        run.cuts.clear()
        inputs["hidden_states"] = take_columns(hidden, slots)
        self._shorten(index, inputs, original, run)


def language_model(model: Any) -> Any:
    """Returns the part of a video language model that has `layers`, `norm` and the rotary embedding.

    Raises:
        ValueError: there is none under a known name.
    """
    for name in ("language_model", "text_model", "model"):  # the last one in Qwen omni models of 5.19
        text = getattr(model.base_model, name, None)
        # A causal language model has it inside.
        for part in (text, getattr(text, "model", None)):
            if hasattr(part, "layers"):
                return part
    raise ValueError(f"{type(model).__name__} has no language model with decoder layers under a known name")


def input_norm(layer: Any) -> Any:
    """The norm of a layer before its attention; the identity if it has none under a known name."""
    names = ("input_layernorm", "operator_norm", "norm", "ln_1", "attention_norm")
    return next((getattr(layer, name) for name in names if hasattr(layer, name)), nn.Identity())


def output_norm(text: Any) -> Any:
    """The norm of a language model after its last layer.

    Raises:
        ValueError: there is none under a known name.
    """
    for name in ("norm", "norm_f", "embedding_norm"):
        if hasattr(text, name):
            return getattr(text, name)
    raise unsupported(f"{type(text).__name__} has no norm under a known name")


def _columns(run: Run, hidden: Tensor) -> Tensor:
    """The column of each position in `hidden`, -1 is padding, int64 [B,M]."""
    if run.columns is not None:
        return run.columns
    all_columns = torch.arange(hidden.shape[1], device=hidden.device).expand(len(hidden), -1)
    return all_columns if run.real is None else all_columns.masked_fill(~run.real, -1)


def _by_column(run: Run, values: Tensor) -> Tensor:
    """Values [B,M,d] of the remaining columns by column of the full prompt, [B,L,d]; 0 in the others."""
    assert run.layout is not None
    length, columns = run.layout.visual.shape[1], _columns(run, values)
    target = columns.masked_fill(columns < 0, length)[..., None].expand_as(values)
    return values.new_zeros(len(values), length + 1, values.shape[2]).scatter(1, target, values)[:, :-1]


def take_columns(values: Tensor, columns: Tensor) -> Tensor:
    """Columns [B,M] of values [B or 1,N,...]; arbitrary at padding."""
    return take_rows(values.expand(len(columns), *values.shape[1:]), columns.clamp(min=0))


def _put(values: Tensor, columns: Tensor, rows: Tensor) -> Tensor:
    """Values [B,L,D] whose `columns` [B,M] are replaced by `rows` [B,M,D], except at padding."""
    real = columns >= 0
    prompt = torch.arange(len(columns), device=columns.device)[:, None].expand_as(real)
    return values.index_put((prompt[real], columns[real]), rows[real])


def _restore(run: Run, hidden: Tensor) -> Tensor:
    """Restores all columns [B,L,D], removed ones as they were when removed."""
    assert run.full is not None and run.columns is not None
    return _put(run.full, run.columns, hidden)
